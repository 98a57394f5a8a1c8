package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

func parseRoutes(list []string) (routes []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, badRequest{err}
		}
		routes = append(routes, p)
	}
	return routes, nil
}

// approveRoutes has these networks (and no others) go by a node: what an admin does who approves what it advertises.
func (c *controlServer) approveRoutes(name string, list []string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	routes, err := parseRoutes(list)
	if err != nil {
		return err
	}
	c.tc.SetSubnetRoutes(n.Key, routes)
	return nil
}

// allowFunnel gives a node what the policy's "nodeAttrs" gives with Funnel.
func (c *controlServer) allowFunnel(name string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	caps := tailcfg.NodeCapMap{tailcfg.NodeAttrFunnel: nil, tailcfg.CapabilityFunnelPorts + "?ports=443,8443,10000": nil}
	for k, v := range *c.tc.DefaultNodeCapabilities {
		caps[k] = v
	}
	c.tc.SetNodeCapMap(n.Key, caps)
	return nil
}

// advertise tells the control server that these networks are behind this client; it forwards to them by its machine's own network.
func (c *tailnetClient) advertise(r *http.Request) (any, error) {
	routes, err := parseRoutes(r.URL.Query()["route"])
	if err != nil {
		return nil, err
	}
	if _, err := c.lc.EditPrefs(r.Context(), &ipn.MaskedPrefs{AdvertiseRoutesSet: true, Prefs: ipn.Prefs{AdvertiseRoutes: routes}}); err != nil {
		return nil, err
	}
	// tsnet itself forwards nothing.
	c.forward(func(dst netip.AddrPort) bool {
		return slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Contains(dst.Addr()) })
	})
	return nil, nil
}

// forward joins connections to these addresses to ones that its machine makes, in place of those of the last call.
func (c *tailnetClient) forward(mine func(netip.AddrPort) bool) {
	if c.unforward != nil {
		c.unforward()
	}
	c.unforward = c.srv.RegisterFallbackTCPHandler(func(_, dst netip.AddrPort) (func(net.Conn), bool) {
		if !mine(dst) {
			return nil, false
		}
		return func(in net.Conn) {
			defer in.Close()
			out, err := net.DialTimeout("tcp", dst.String(), 10*time.Second)
			if err != nil {
				return
			}
			defer out.Close()
			relay(in, bufio.NewReader(in), out)
		}, true
	})
}

// ingress does what a relay of Tailscale Funnel does: has the node at an address take a connection from the internet,
// whose client is at src and wants target (name:port).
func (c *tailnetClient) ingress(ctx context.Context, node, target, src string) (net.Conn, error) {
	st, err := c.lc.Status(ctx)
	if err != nil {
		return nil, err
	}
	addr := ""
	for _, p := range st.Peer {
		for _, ip := range p.TailscaleIPs {
			if ip.String() == node && len(p.PeerAPIURL) > 0 {
				addr = strings.TrimPrefix(p.PeerAPIURL[0], "http://")
			}
		}
	}
	if addr == "" {
		return nil, fmt.Errorf("%s has no peer API", node)
	}
	out, err := c.srv.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", "http://"+addr+"/v0/ingress", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Tailscale-Ingress-Src", src)
	req.Header.Set("Tailscale-Ingress-Target", target)
	if err := req.Write(out); err != nil {
		return nil, err
	}
	in := bufio.NewReader(out)
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return nil, fmt.Errorf("ingress: %s: %s", res.Status, b)
	}
	return bufferedConn{out, in}, nil
}

// bufferedConn is a connection of which some bytes have been read already.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader
}

func (c bufferedConn) Read(b []byte) (int, error) { return c.in.Read(b) }
