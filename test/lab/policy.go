package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// grant is an entry of the policy's "grants", with app capabilities or TCP ports. Sources and
// destinations are node names, tags, login names or "*". Where no grant has ports every node reaches
// every other, as testcontrol has it; where one has, what none gives is refused.
type grant struct {
	Src   []string           `json:"src"`
	Dst   []string           `json:"dst"`
	App   tailcfg.PeerCapMap `json:"app,omitempty"`
	Ports []uint16           `json:"ports,omitempty"`
}

// people are the users of the tailnet beside the one whom testcontrol gives all nodes to; by login
// name.
type people map[string]tailcfg.UserID

// setGrants replaces the policy's grants and tells every node.
func (c *controlServer) setGrants(grants []grant) {
	c.mu.Lock()
	c.grants = grants
	c.mu.Unlock()
	c.pushAll()
}

// setOwner gives a node to a user, who is made where there is none of that login name, or with tags
// to nobody.
func (c *controlServer) setOwner(node, login string, tags []string) error {
	if (login == "") == (len(tags) == 0) {
		return fmt.Errorf("either a user or tags: a node has one or the other")
	}
	n := c.named(node)
	if n == nil {
		return fmt.Errorf("no node is called %q: GET /nodes lists them", node)
	}
	n.Tags = tags
	if login == "" {
		// As Tailscale does: one user for all of them.
		login = "tagged-devices"
	}
	c.mu.Lock()
	id, ok := c.people[login]
	if !ok {
		id = tailcfg.UserID(1000 + len(c.people))
		c.people[login] = id
	}
	c.mu.Unlock()
	n.User = id
	c.tc.UpdateNode(n)
	c.pushAll()
	return nil
}

// pushAll has testcontrol send every node its map anew.
func (c *controlServer) pushAll() { c.tc.SetGlobalAppCaps(nil) }

// named returns the node of this name, with or without the suffix.
func (c *controlServer) named(name string) *tailcfg.Node {
	for _, n := range c.tc.AllNodes() {
		if full := strings.TrimSuffix(n.Name, "."); full != "" && (full == name || full == name+"."+c.suffix) {
			return n
		}
	}
	return nil
}

// addPolicy adds to a map response for the machine what testcontrol knows nothing of: grants,
// people, and the names of Services. Messages that are no whole map are left as they are.
func (c *controlServer) addPolicy(msg []byte, machine key.MachinePublic) ([]byte, error) {
	var res map[string]json.RawMessage
	if err := json.Unmarshal(msg, &res); err != nil || res["Node"] == nil {
		return msg, err
	}
	c.mu.Lock()
	grants, known := c.grants, c.people
	profiles := []json.RawMessage{}
	for login, id := range known {
		profiles = append(profiles, must(json.Marshal(tailcfg.UserProfile{ID: id, LoginName: login, DisplayName: login})))
	}
	logins := map[tailcfg.UserID]string{}
	for login, id := range known {
		logins[id] = login
	}
	c.mu.Unlock()

	nodes := c.tc.AllNodes()
	self := slices.IndexFunc(nodes, func(n *tailcfg.Node) bool { return n.Machine == machine && n.Name != "" })
	if self < 0 {
		return msg, nil
	}
	is := func(n *tailcfg.Node, names []string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			full := strings.TrimSuffix(n.Name, ".")
			return name == "*" || name == full || name+"."+c.suffix == full || slices.Contains(n.Tags, name) || (len(n.Tags) == 0 && logins[n.User] == name)
		})
	}
	rules := []json.RawMessage{}
	if slices.ContainsFunc(grants, func(g grant) bool { return len(g.Ports) > 0 }) {
		delete(res, "PacketFilter")
	}
	for _, g := range grants {
		if !is(nodes[self], g.Dst) {
			continue
		}
		rule := tailcfg.FilterRule{}
		if len(g.Ports) == 0 {
			rule.CapGrant = []tailcfg.CapGrant{{Dsts: slices.Clone(nodes[self].Addresses), CapMap: g.App}}
		}
		for _, p := range nodes[self].Addresses {
			for _, port := range g.Ports {
				rule.DstPorts = append(rule.DstPorts, tailcfg.NetPortRange{IP: p.Addr().String(), Ports: tailcfg.PortRange{First: port, Last: port}})
			}
		}
		for _, n := range nodes {
			if n.Name != "" && is(n, g.Src) {
				for _, p := range n.Addresses {
					rule.SrcIPs = append(rule.SrcIPs, p.Addr().String())
				}
			}
		}
		if len(rule.SrcIPs) > 0 {
			rules = append(rules, must(json.Marshal(rule)))
		}
	}
	if res["DNSConfig"] != nil {
		dns := &tailcfg.DNSConfig{}
		if err := json.Unmarshal(res["DNSConfig"], dns); err != nil {
			return nil, err
		}
		dns.CertDomains = append(dns.CertDomains, c.serviceNames(nodes[self].ID)...)
		c.mu.Lock()
		for svc, h := range c.hosted {
			dns.ExtraRecords = append(dns.ExtraRecords, tailcfg.DNSRecord{Name: svc.WithoutPrefix() + "." + c.suffix, Value: h.addr.String()})
		}
		c.mu.Unlock()
		res["DNSConfig"] = must(json.Marshal(dns))
	}
	if c.headscale {
		if err := withoutCertDomains(res); err != nil {
			return nil, err
		}
	}
	for field, more := range map[string][]json.RawMessage{"PacketFilter": rules, "UserProfiles": profiles} {
		var list []json.RawMessage
		if res[field] != nil {
			if err := json.Unmarshal(res[field], &list); err != nil {
				return nil, err
			}
		}
		res[field] = must(json.Marshal(append(list, more...)))
	}
	return json.Marshal(res)
}
