package main

import (
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// zones are domains that other name servers of the segment serve: the lab's DNS asks them, as a
// resolver does, and follows aliases from one to the other.
type zones struct {
	servers map[string]string // name with last dot → address with port
}

// setZone delegates a domain to a name server ("10.77.0.5" or with a port); an empty one takes it
// back.
func (d *dnsServer) setZone(name, server string) {
	name = strings.ToLower(dns.Fqdn(name))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.zones.servers == nil {
		d.zones.servers = map[string]string{}
	}
	if server == "" {
		delete(d.zones.servers, name)
		return
	}
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "53")
	}
	d.zones.servers[name] = server
}

// zoneOf returns the name server of the longest delegated domain that a name is in.
func (d *dnsServer) zoneOf(name string) (server string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	longest := 0
	for zone, s := range d.zones.servers {
		if len(zone) > longest && dns.IsSubDomain(zone, name) {
			server, ok, longest = s, true, len(zone)
		}
	}
	return server, ok
}

// resolve answers a question about a delegated domain; ok is whether the name is in one. Aliases
// that lead out of it are followed.
func (d *dnsServer) resolve(q dns.Question, res *dns.Msg) (ok bool) {
	name := q.Name
	for range 8 {
		server, there := d.zoneOf(strings.ToLower(name))
		if !there {
			return ok
		}
		ok = true
		req := new(dns.Msg)
		req.SetQuestion(name, q.Qtype)
		client := dns.Client{Timeout: 3 * time.Second}
		in, _, err := client.Exchange(req, server)
		if err != nil {
			d.logger.Printf("%s does not answer about %s: %v", server, name, err)
			res.Rcode = dns.RcodeServerFailure
			return true
		}
		res.Rcode = in.Rcode
		res.Answer = append(res.Answer, in.Answer...)
		next := ""
		for _, rr := range in.Answer {
			if rr.Header().Rrtype == q.Qtype {
				return true
			}
			if c, is := rr.(*dns.CNAME); is {
				next = c.Target
			}
		}
		if next == "" {
			return true
		}
		// A server that has the target's zone too has said so already.
		if host, is := d.target(next); is {
			res.Rcode = dns.RcodeSuccess
			if q.Qtype == dns.TypeA {
				res.Answer = append(res.Answer, host...)
			}
			return true
		}
		name = next
	}
	return ok
}

// target returns the A records of one of the lab's own hosts.
func (d *dnsServer) target(name string) (rrs []dns.RR, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hosts, ok := d.hosts[strings.ToLower(name)]
	for _, h := range hosts {
		if h.Is4() {
			rrs = append(rrs, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: h.AsSlice()})
		}
	}
	return rrs, ok
}
