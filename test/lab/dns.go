package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// dnsServer is the lab's DNS: the names of its servers, the challenges nodes have published, and
// NXDOMAIN for all else. To some who ask it behaves as the resolvers of people's networks do
// (dnsManner).
type dnsServer struct {
	logger  *log.Logger
	servers []*dns.Server

	mu      sync.Mutex
	hosts   map[string][]netip.Addr   // name with last dot → addresses
	txt     map[string][]string       // name with last dot → values, oldest first
	asked   map[string]int            // "TYPE name RCODE" → times
	manners map[netip.Addr]*dnsManner // by who asks
	zones   zones                     // domains that others serve
}

// dnsManner is how the resolver of one network differs from a good one.
type dnsManner struct {
	Silent   bool   `json:"silent"`   // it never answers
	DelayMS  int    `json:"delayMs"`  // before each answer
	ServFail int    `json:"servFail"` // so many of the first questions for each name get SERVFAIL
	Truncate bool   `json:"truncate"` // over UDP the answer does not fit: it is to be asked for by TCP
	CNAME    int    `json:"cname"`    // so many aliases stand before the addresses of a name
	AAAA     string `json:"aaaa"`     // every host has this IPv6 address too
	DNS64    string `json:"dns64"`    // names without IPv6 get one made of this prefix (96 bits) and their IPv4 (RFC 6147); IPv4 is hidden

	failed map[string]int // by type and name
	asked  map[string]int // by protocol
}

// challengesKept is how many values of one challenge name are served: two orders may be under way
// at a time.
const challengesKept = 4

// startDNS serves DNS at each address, over UDP and TCP.
func startDNS(logger *log.Logger, hosts map[string][]string, addrs ...string) (*dnsServer, error) {
	d := &dnsServer{
		logger: logger, hosts: map[string][]netip.Addr{}, txt: map[string][]string{}, asked: map[string]int{},
		manners: map[netip.Addr]*dnsManner{},
	}
	for name, ips := range hosts {
		if err := d.setHost(name, ips); err != nil {
			return nil, err
		}
	}
	for _, addr := range addrs {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
		if err != nil {
			d.Close()
			return nil, err
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(addr, "53"))
		if err != nil {
			pc.Close()
			d.Close()
			return nil, err
		}
		for _, s := range []*dns.Server{{PacketConn: pc, Handler: d}, {Listener: ln, Handler: d}} {
			d.servers = append(d.servers, s)
			up := make(chan struct{})
			s.NotifyStartedFunc = func() { close(up) }
			go s.ActivateAndServe()
			<-up // Shutdown of one that has not started is an error
		}
	}
	return d, nil
}

func (d *dnsServer) Close() {
	for _, s := range d.servers {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		s.ShutdownContext(ctx)
		cancel()
	}
}

// setTXT publishes a challenge. A name keeps its last few values.
func (d *dnsServer) setTXT(name, value string) {
	name = strings.ToLower(dns.Fqdn(name))
	d.mu.Lock()
	defer d.mu.Unlock()
	vals := slices.DeleteFunc(d.txt[name], func(v string) bool { return v == value })
	vals = append(vals, value)
	if len(vals) > challengesKept {
		vals = vals[len(vals)-challengesKept:]
	}
	d.txt[name] = vals
	d.logger.Printf("set TXT %s %q", name, value)
}

// setHost replaces the addresses of a name; with none the name is gone.
func (d *dnsServer) setHost(name string, ips []string) error {
	var addrs []netip.Addr
	for _, ip := range ips {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	name = strings.ToLower(dns.Fqdn(name))
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(addrs) == 0 {
		delete(d.hosts, name)
	} else {
		d.hosts[name] = addrs
	}
	return nil
}

// setManner says how the server is to behave to one who asks from this address; nil: well.
func (d *dnsServer) setManner(from string, m *dnsManner) error {
	addr, err := netip.ParseAddr(from)
	if err != nil {
		return err
	}
	if m != nil {
		for _, text := range []string{m.AAAA, m.DNS64} {
			if text == "" {
				continue
			}
			if ip, err := netip.ParseAddr(text); err != nil || !ip.Is6() {
				return fmt.Errorf("%q is no IPv6 address", text)
			}
		}
		m.failed, m.asked = map[string]int{}, map[string]int{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m == nil {
		delete(d.manners, addr)
	} else {
		d.manners[addr] = m
	}
	return nil
}

// askedBy returns how often one with a manner of its own has asked, by protocol: "udp", "tcp", and
// "SERVFAIL" for how often it got that.
func (d *dnsServer) askedBy(from string) map[string]int {
	out := map[string]int{}
	d.mu.Lock()
	defer d.mu.Unlock()
	if addr, err := netip.ParseAddr(from); err == nil && d.manners[addr] != nil {
		for k, n := range d.manners[addr].asked {
			out[k] = n
		}
	}
	return out
}

// records returns the challenges that are served, by name without the last dot.
func (d *dnsServer) records() map[string][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string][]string{}
	for k, v := range d.txt {
		m[strings.TrimSuffix(k, ".")] = slices.Clone(v)
	}
	return m
}

// dnsQuery is one question and how often it was asked.
type dnsQuery struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	RCode string `json:"rcode"`
	Times int    `json:"times"`
}

// queries returns every question asked so far: a name nobody ought to want shows who would have
// called home.
func (d *dnsServer) queries() []dnsQuery {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []dnsQuery{}
	for k, n := range d.asked {
		f := strings.Fields(k)
		list = append(list, dnsQuery{Type: f[0], Name: strings.TrimSuffix(f[1], "."), RCode: f[2], Times: n})
	}
	slices.SortFunc(list, func(a, b dnsQuery) int { return strings.Compare(a.Name+a.Type, b.Name+b.Type) })
	return list
}

// addresses returns what a host has in the eyes of one who asks; ok is whether there is such a
// host.
func (d *dnsServer) addresses(name string, m *dnsManner) (addrs []netip.Addr, ok bool) {
	addrs, ok = d.hosts[name]
	addrs = slices.Clone(addrs)
	has6 := slices.ContainsFunc(addrs, netip.Addr.Is6)
	if m == nil || !ok {
		return addrs, ok
	}
	if m.DNS64 != "" {
		if !has6 {
			for _, a := range slices.Clone(addrs) {
				prefix, v4 := netip.MustParseAddr(m.DNS64).As16(), a.As4()
				copy(prefix[12:], v4[:])
				addrs = append(addrs, netip.AddrFrom16(prefix))
			}
		}
		addrs = slices.DeleteFunc(addrs, netip.Addr.Is4)
	}
	if m.AAAA != "" && !has6 {
		addrs = append(addrs, netip.MustParseAddr(m.AAAA))
	}
	return addrs, ok
}

func (d *dnsServer) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	res := new(dns.Msg)
	res.SetReply(req)
	res.Authoritative = true
	res.RecursionAvailable = true
	if len(req.Question) != 1 {
		res.Rcode = dns.RcodeFormatError
		w.WriteMsg(res)
		return
	}
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	from := netip.MustParseAddrPort(w.RemoteAddr().String()).Addr().Unmap()
	protocol := w.RemoteAddr().Network()
	d.mu.Lock()
	txt := slices.Clone(d.txt[name])
	manner := d.manners[from]
	hosts, isHost := d.addresses(name, manner)
	var delay time.Duration
	var silent, truncate, fails bool
	aliases := 0
	if manner != nil {
		manner.asked[protocol]++
		silent, delay, aliases = manner.Silent, time.Duration(manner.DelayMS)*time.Millisecond, manner.CNAME
		truncate = manner.Truncate && protocol == "udp"
		key := dns.TypeToString[q.Qtype] + " " + name
		if fails = manner.failed[key] < manner.ServFail; fails {
			manner.failed[key]++
			manner.asked["SERVFAIL"]++
		}
	}
	d.mu.Unlock()
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: 1}
	}
	switch {
	case fails:
		res.Rcode = dns.RcodeServerFailure
	case isHost:
		owner := q.Name
		for i := range aliases {
			next := fmt.Sprintf("alias%d.%s", i+1, q.Name)
			res.Answer = append(res.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: next})
			owner = next
		}
		for _, host := range hosts {
			switch {
			case q.Qtype == dns.TypeA && host.Is4():
				res.Answer = append(res.Answer, &dns.A{Hdr: header(owner, dns.TypeA), A: host.AsSlice()})
			case q.Qtype == dns.TypeAAAA && host.Is6():
				res.Answer = append(res.Answer, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: host.AsSlice()})
			}
		}
	case len(txt) > 0:
		if q.Qtype == dns.TypeTXT {
			for _, v := range txt {
				res.Answer = append(res.Answer, &dns.TXT{
					Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{v},
				})
			}
		}
	case d.resolve(q, res):
		res.Authoritative = false
	default:
		res.Rcode = dns.RcodeNameError
	}
	if truncate {
		res.Truncated, res.Answer = true, nil
	}
	key := dns.TypeToString[q.Qtype] + " " + name + " " + dns.RcodeToString[res.Rcode]
	d.mu.Lock()
	d.asked[key]++
	d.mu.Unlock()
	d.logger.Printf("%s asks by %s %s", w.RemoteAddr(), protocol, key)
	if silent {
		return
	}
	time.Sleep(delay)
	w.WriteMsg(res)
}
