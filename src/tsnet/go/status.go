//go:build wasip1

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
)

type nodeStatus struct {
	ID           string   `json:"id"`
	HostName     string   `json:"hostName"`
	DNSName      string   `json:"dnsName"`
	TailscaleIPs []string `json:"tailscaleIPs"`
	Online       bool     `json:"online"`
	CurAddr      string   `json:"curAddr"`
	Relay        string   `json:"relay"`
	Tags         []string `json:"tags"`
	KeyExpiry    string   `json:"keyExpiry,omitempty"`
	Expired      bool     `json:"expired,omitempty"`
}

func fromPeerStatus(p *ipnstate.PeerStatus) nodeStatus {
	s := nodeStatus{
		ID: string(p.ID), HostName: p.HostName, DNSName: strings.TrimSuffix(p.DNSName, "."),
		TailscaleIPs: addrStrings(p.TailscaleIPs), Online: p.Online, CurAddr: p.CurAddr, Relay: p.Relay, Tags: []string{},
	}
	if p.Tags != nil {
		s.Tags = p.Tags.AsSlice()
	}
	if p.KeyExpiry != nil {
		s.KeyExpiry = rfc3339(*p.KeyExpiry)
	}
	s.Expired = p.Expired
	return s
}

func addrStrings(list []netip.Addr) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

func (n *node) status(ctx context.Context) (any, error) {
	st, err := n.lc.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := struct {
		BackendState   string       `json:"backendState"`
		AuthURL        string       `json:"authURL"`
		TailscaleIPs   []string     `json:"tailscaleIPs"`
		Self           *nodeStatus  `json:"self,omitempty"`
		Peers          []nodeStatus `json:"peers"`
		Health         []string     `json:"health"`
		CertDomains    []string     `json:"certDomains"`
		MagicDNSSuffix string       `json:"magicDNSSuffix"`
		// Services that this node is approved to host.
		Services map[string][]string `json:"services"`
	}{
		BackendState: st.BackendState, AuthURL: st.AuthURL, TailscaleIPs: addrStrings(st.TailscaleIPs),
		Peers: []nodeStatus{}, Health: append([]string{}, st.Health...), CertDomains: append([]string{}, st.CertDomains...),
	}
	out.Services = n.approvedServices()
	if st.CurrentTailnet != nil {
		out.MagicDNSSuffix = st.CurrentTailnet.MagicDNSSuffix
	}
	if st.Self != nil && st.HaveNodeKey {
		self := fromPeerStatus(st.Self)
		out.Self = &self
	}
	for _, k := range st.Peers() {
		out.Peers = append(out.Peers, fromPeerStatus(st.Peer[k]))
	}
	return out, nil
}

func (n *node) whoIs(ctx context.Context, addr string) (any, error) {
	w, err := n.lc.WhoIs(ctx, addr)
	if err != nil {
		if errors.Is(err, local.ErrPeerNotFound) {
			return nil, &rpcError{"TSNET_NO_PEER", "no tailnet node has the address " + addr}
		}
		return nil, err
	}
	type whoNode struct {
		ID        string   `json:"id"`
		Name      string   `json:"name"`
		HostName  string   `json:"hostName"`
		Addresses []string `json:"addresses"`
		Tags      []string `json:"tags"`
	}
	type whoUser struct {
		ID            int64  `json:"id"`
		LoginName     string `json:"loginName"`
		DisplayName   string `json:"displayName"`
		ProfilePicURL string `json:"profilePicURL"`
	}
	out := struct {
		Node   whoNode                      `json:"node"`
		User   *whoUser                     `json:"user,omitempty"`
		CapMap map[string][]json.RawMessage `json:"capMap"`
	}{CapMap: map[string][]json.RawMessage{}}
	out.Node = whoNode{
		ID: string(w.Node.StableID), Name: strings.TrimSuffix(w.Node.Name, "."), HostName: w.Node.Hostinfo.Hostname(),
		Addresses: []string{}, Tags: append([]string{}, w.Node.Tags...),
	}
	for _, p := range w.Node.Addresses {
		out.Node.Addresses = append(out.Node.Addresses, p.Addr().String())
	}
	if !w.Node.IsTagged() && w.UserProfile != nil {
		out.User = &whoUser{int64(w.UserProfile.ID), w.UserProfile.LoginName, w.UserProfile.DisplayName, w.UserProfile.ProfilePicURL}
	}
	for k, vs := range w.CapMap {
		list := []json.RawMessage{}
		for _, v := range vs {
			list = append(list, json.RawMessage(v))
		}
		out.CapMap[string(k)] = list
	}
	return out, nil
}
