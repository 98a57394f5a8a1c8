//go:build wasip1

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// serviceKey is one port of a Tailscale Service that this node hosts.
type serviceKey struct {
	name tailcfg.ServiceName
	port uint16
}

// selfChanged learns which addresses the control server has given to the Services that this node may host.
func (n *node) selfChanged(self *tailcfg.Node) {
	addrs := map[netip.Addr]tailcfg.ServiceName{}
	if maps, err := tailcfg.UnmarshalNodeCapJSON[tailcfg.ServiceIPMappings](self.CapMap, tailcfg.NodeAttrServiceHost); err == nil {
		for _, m := range maps {
			for name, ips := range m {
				for _, ip := range ips {
					addrs[ip] = name
				}
			}
		}
	}
	n.mu.Lock()
	n.serviceAddrs = addrs
	n.mu.Unlock()
}

// approvedServices returns the Services that this node may host, with their addresses.
func (n *node) approvedServices() map[string][]string {
	out := map[string][]string{}
	n.mu.Lock()
	for ip, name := range n.serviceAddrs {
		out[name.String()] = append(out[name.String()], ip.String())
	}
	n.mu.Unlock()
	for _, ips := range out {
		slices.Sort(ips)
	}
	return out
}

// serviceFlow is a tsnet.FallbackTCPHandler. tsnet's own ListenService forwards over a loopback socket, which loses the
// peer's address and its half-closes (and which there is none of here): the connection itself is handed over instead.
func (n *node) serviceFlow(src, dst netip.AddrPort) (func(net.Conn), bool) {
	n.mu.Lock()
	id, ok := n.services[serviceKey{n.serviceAddrs[dst.Addr()], dst.Port()}]
	n.mu.Unlock()
	if !ok {
		return nil, false
	}
	return func(c net.Conn) {
		n.handOver(c, streamMeta{Listener: id, Local: dst.String(), Remote: src.String()})
	}, true
}

// listenService does what tsnet.Server.ListenService does: advertises the Service and takes its connections.
func (n *node) listenService(ctx context.Context, id uint64, name string, port uint16) (any, error) {
	svc := tailcfg.ServiceName(name)
	if err := svc.Validate(); err != nil {
		return nil, &rpcError{"TSNET_OPTIONS", err.Error()}
	}
	if err := n.awaitRunning(ctx); err != nil {
		return nil, err
	}
	st, err := n.lc.StatusWithoutPeers(ctx)
	if err != nil {
		return nil, err
	}
	if st.Self.Tags == nil || st.Self.Tags.Len() == 0 {
		return nil, &rpcError{"TSNET_SERVICE", "only a tagged node may host a Service: give it advertiseTags, and an auth key that allows them"}
	}
	key := serviceKey{svc, port}
	n.mu.Lock()
	_, taken := n.services[key]
	if !taken {
		n.services[key] = id
	}
	n.mu.Unlock()
	if taken {
		return nil, &rpcError{"TSNET_LISTEN", fmt.Sprintf("listener already open for %s, port %d", name, port)}
	}
	if err := n.advertise(ctx); err != nil {
		n.mu.Lock()
		delete(n.services, key)
		n.mu.Unlock()
		return nil, &rpcError{"TSNET_SERVICE", err.Error()}
	}
	return map[string]string{"fqdn": svc.WithoutPrefix() + "." + st.CurrentTailnet.MagicDNSSuffix}, nil
}

// advertise tells control server and backend what services holds. A port's handler is empty: with any of Tailscale's
// own, the connection would never come by serviceFlow.
func (n *node) advertise(ctx context.Context) error {
	n.advertising.Lock()
	defer n.advertising.Unlock()
	cfg := &ipn.ServeConfig{Services: map[tailcfg.ServiceName]*ipn.ServiceConfig{}}
	names := []string{}
	n.mu.Lock()
	for k := range n.services {
		if cfg.Services[k.name] == nil {
			cfg.Services[k.name] = &ipn.ServiceConfig{TCP: map[uint16]*ipn.TCPPortHandler{}}
			names = append(names, k.name.String())
		}
		cfg.Services[k.name].TCP[k.port] = &ipn.TCPPortHandler{}
	}
	n.mu.Unlock()
	slices.Sort(names)
	if err := n.lc.SetServeConfig(ctx, cfg); err != nil {
		return err
	}
	_, err := n.lc.EditPrefs(ctx, &ipn.MaskedPrefs{AdvertiseServicesSet: true, Prefs: ipn.Prefs{AdvertiseServices: names}})
	return err
}

// endService takes a port of a Service away again.
func (n *node) endService(ctx context.Context, id uint64) error {
	n.mu.Lock()
	found := false
	for k, v := range n.services {
		if v == id {
			delete(n.services, k)
			found = true
		}
	}
	n.mu.Unlock()
	if !found {
		return nil
	}
	return n.advertise(ctx)
}
