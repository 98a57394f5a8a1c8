package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"
	tslocal "tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
)

// tailnetClient answers a test's requests with a tsnet server.
type tailnetClient struct {
	srv       *tsnet.Server
	lc        *tslocal.Client
	logger    *log.Logger
	unforward func() // ends what forward has begun
}

func client(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("lab client", flag.ContinueOnError)
	dir := fs.String("dir", "", "directory of the client's state; made when absent")
	control := fs.String("control", "", "URL of the control server")
	keyFile := fs.String("authkey-file", "", "file with the auth key; without it, GET /status gives a login URL")
	hostname := fs.String("hostname", "", "name to ask for")
	socket := fs.String("socket", "", "unix socket of the API")
	port := fs.Uint("port", 0, "UDP port of WireGuard; 0 picks one")
	browser := fs.String("browser", "", "unix socket of the reverse proxy to --origin")
	origin := fs.String("origin", "", "https URL that --browser forwards to, through the tailnet")
	roots := fs.String("roots", "", "PEM file of the authorities that --origin is verified against")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for name, v := range map[string]string{"dir": *dir, "control": *control, "hostname": *hostname, "socket": *socket} {
		if v == "" {
			return fmt.Errorf("--%s is missing", name)
		}
	}
	if *port > 65535 {
		return fmt.Errorf("--port %d is no port: 0 to 65535", *port)
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	authKey := ""
	if *keyFile != "" {
		b, err := os.ReadFile(*keyFile)
		if err != nil {
			return err
		}
		authKey = strings.TrimSpace(string(b))
	}
	logFile, err := os.OpenFile(filepath.Join(*dir, "client.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	logger := log.New(logFile, "", log.LstdFlags|log.Lmicroseconds)
	log.SetOutput(logFile)
	c := &tailnetClient{srv: &tsnet.Server{
		Dir: *dir, Hostname: *hostname, ControlURL: *control, AuthKey: authKey, Port: uint16(*port),
		Logf: logger.Printf, UserLogf: logger.Printf,
	}}
	if err := c.srv.Start(); err != nil {
		return err
	}
	defer c.srv.Close()
	if c.lc, err = c.srv.LocalClient(); err != nil {
		return err
	}
	c.logger = logger
	// Services are routes to Linux, which accepts none unless told to.
	if _, err := c.lc.EditPrefs(ctx, &ipn.MaskedPrefs{RouteAllSet: true, Prefs: ipn.Prefs{RouteAll: true}}); err != nil {
		return err
	}
	if *browser != "" {
		if err := c.browse(ctx, *browser, *origin, *roots); err != nil {
			return err
		}
	}
	ln, err := listenUnix(*socket)
	if err != nil {
		return err
	}
	api := &http.Server{Handler: c.handler(ctx), ErrorLog: logger}
	go api.Serve(ln)
	defer api.Close()
	<-ctx.Done()
	return nil
}

// handler is the API:
//
//	GET  /status              clientStatus
//	POST /up?timeout=30s      waits until the client has an address, then clientStatus
//	GET  /ping?ip=&type=disco one ping (disco, TSMP or ICMP), pingAnswer
//	*    /fetch?url=&roots=   one request through the tailnet, fetchAnswer; method, headers and body are passed on
//	GET  /dial?addr=host:port upgrades to a raw TCP stream through the tailnet (101, then bytes)
//	GET  /dial?addr=ip&ingress=name:port&src=ip:port  the same, as a connection that comes by Funnel to the node at ip
//	POST /advertise?route=    networks that are behind it, by its machine's own network; 204
//	POST /setdns {name,value} sets a TXT record as this node; 204
//	GET  /whois?addr=         who has a tailnet address
//	POST /serve {port,socket} forwards a TCP port of its tailnet addresses to a unix socket; 204
//	GET  /load?ip=&kind=&streams=&ms=  loads the program of a benchmark, loadAnswer
//	POST /browser {socket,origin,roots}  what --browser, --origin and --roots do; 204
//
// Errors are JSON {"error": "…"} with status 502 (the tailnet said no) or 400 (the request is
// wrong).
func (c *tailnetClient) handler(life context.Context) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			switch {
			case err != nil:
				fail(w, err)
			case v == nil:
				w.WriteHeader(http.StatusNoContent)
			default:
				writeJSON(w, v)
			}
		})
	}
	answer("GET /status", func(r *http.Request) (any, error) { return c.status(r.Context()) })
	answer("POST /up", c.up)
	answer("GET /ping", c.ping)
	answer("/fetch", c.fetch)
	answer("POST /setdns", c.setDNS)
	answer("GET /whois", func(r *http.Request) (any, error) { return c.lc.WhoIs(r.Context(), r.FormValue("addr")) })
	answer("POST /serve", func(r *http.Request) (any, error) {
		var req struct {
			Port   uint16
			Socket string
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			return nil, badRequest{err}
		}
		if req.Port == 0 || req.Socket == "" {
			return nil, badRequest{errors.New("port and socket are needed")}
		}
		return nil, c.serve(life, req.Port, req.Socket)
	})
	answer("GET /load", c.load)
	answer("POST /udp-echo", func(r *http.Request) (any, error) { return nil, c.echoPackets(life, r.FormValue("port")) })
	answer("POST /udp-ask", c.askPacket)
	answer("POST /browser", func(r *http.Request) (any, error) {
		var req struct{ Socket, Origin, Roots string }
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			return nil, badRequest{err}
		}
		if err := c.browse(life, req.Socket, req.Origin, req.Roots); err != nil {
			return nil, badRequest{err}
		}
		return nil, nil
	})
	answer("POST /advertise", c.advertise)
	mux.HandleFunc("GET /dial", c.dial)
	return mux
}

// badRequest is an error of the caller's making.
type badRequest struct{ error }

func fail(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	var bad badRequest
	if errors.As(err, &bad) {
		status = http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// clientStatus is the client's view of itself and of its peers.
type clientStatus struct {
	State       string       `json:"state"`             // "Running", "NeedsLogin", "Starting" …
	AuthURL     string       `json:"authURL,omitempty"` // visit it to log in
	Name        string       `json:"name"`              // full name without the last dot
	IPs         []netip.Addr `json:"ips"`
	CertDomains []string     `json:"certDomains"`
	Health      []string     `json:"health"`
	Peers       []peerStatus `json:"peers"`
}

type peerStatus struct {
	Name    string       `json:"name"`
	IPs     []netip.Addr `json:"ips"`
	Online  bool         `json:"online"`
	Expired bool         `json:"expired"`
	Path    path         `json:"path"`
}

// path is the way packets take to a peer.
type path struct {
	Direct   bool   `json:"direct"`
	Endpoint string `json:"endpoint,omitempty"` // UDP address of the peer, when direct
	DERP     string `json:"derp,omitempty"`     // the relay's region code, when not
}

func (c *tailnetClient) status(ctx context.Context) (*clientStatus, error) {
	st, err := c.lc.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := &clientStatus{
		State: st.BackendState, AuthURL: st.AuthURL, IPs: st.TailscaleIPs,
		CertDomains: st.CertDomains, Health: st.Health, Peers: []peerStatus{},
	}
	if st.Self != nil {
		out.Name = strings.TrimSuffix(st.Self.DNSName, ".")
	}
	for _, p := range st.Peer {
		out.Peers = append(out.Peers, peerStatus{
			Name: strings.TrimSuffix(p.DNSName, "."), IPs: p.TailscaleIPs, Online: p.Online, Expired: p.Expired, Path: pathOf(p),
		})
	}
	return out, nil
}

func pathOf(p *ipnstate.PeerStatus) path {
	if p.CurAddr != "" {
		return path{Direct: true, Endpoint: p.CurAddr}
	}
	return path{DERP: p.Relay}
}

func (c *tailnetClient) up(r *http.Request) (any, error) {
	timeout, err := time.ParseDuration(cmpOr(r.FormValue("timeout"), "30s"))
	if err != nil {
		return nil, badRequest{err}
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if _, err := c.srv.Up(ctx); err != nil {
		return nil, err
	}
	return c.status(ctx)
}

// pingAnswer is the result of one ping.
type pingAnswer struct {
	path
	Node string  `json:"node"`
	MS   float64 `json:"ms"`
}

func (c *tailnetClient) ping(r *http.Request) (any, error) {
	ip, err := netip.ParseAddr(r.FormValue("ip"))
	if err != nil {
		return nil, badRequest{err}
	}
	kind := tailcfg.PingType(cmpOr(r.FormValue("type"), string(tailcfg.PingDisco)))
	switch kind {
	case tailcfg.PingDisco, tailcfg.PingTSMP, tailcfg.PingICMP:
	default:
		return nil, badRequest{fmt.Errorf("type %q is none of disco, TSMP, ICMP", kind)}
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	res, err := c.lc.Ping(ctx, ip, kind)
	if err != nil {
		return nil, err
	}
	if res.Err != "" {
		return nil, errors.New(res.Err)
	}
	return pingAnswer{
		path: path{Direct: res.Endpoint != "", Endpoint: res.Endpoint, DERP: res.DERPRegionCode},
		Node: res.NodeName, MS: res.LatencySeconds * 1000,
	}, nil
}

// fetchAnswer is a response fetched through the tailnet.
type fetchAnswer struct {
	Status  int         `json:"status"`
	Headers http.Header `json:"headers"`
	Body    []byte      `json:"body"` // base64 in JSON
	TLS     *tlsAnswer  `json:"tls,omitempty"`
	Path    path        `json:"path"`
	MS      float64     `json:"ms"`
}

// tlsAnswer is about the server's certificate. There is no unverified answer: a certificate that
// does not verify is an error.
type tlsAnswer struct {
	Issuer   string    `json:"issuer"`
	Subject  string    `json:"subject"`
	DNSNames []string  `json:"dnsNames"`
	NotAfter time.Time `json:"notAfter"`
	Version  string    `json:"version"`
	Verified bool      `json:"verified"`
}

// maxBody is the most of a body that is kept, in bytes.
const maxBody = 64 << 20

func (c *tailnetClient) fetch(r *http.Request) (any, error) {
	q := r.URL.Query()
	target, err := url.Parse(q.Get("url"))
	if err != nil || target.Host == "" || (target.Scheme != "https" && target.Scheme != "http") {
		return nil, badRequest{fmt.Errorf("url %q is no http or https URL", q.Get("url"))}
	}
	tr, err := c.transport(q.Get("roots"))
	if err != nil {
		return nil, badRequest{err}
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(r.Context(), r.Method, target.String(), r.Body)
	if err != nil {
		return nil, badRequest{err}
	}
	req.Header = r.Header.Clone()
	req.ContentLength = r.ContentLength
	// Of the hop to this socket, not of the request. Left in, Accept-Encoding would also keep the body
	// compressed.
	for _, h := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Accept-Encoding"} {
		req.Header.Del(h)
	}
	start := time.Now()
	// Not http.Client: redirects are answers to test, not to follow.
	res, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the body is over %d bytes", maxBody)
	}
	out := fetchAnswer{
		Status: res.StatusCode, Headers: res.Header, Body: body,
		MS: float64(time.Since(start).Microseconds()) / 1000,
	}
	if res.TLS != nil {
		leaf := res.TLS.PeerCertificates[0]
		out.TLS = &tlsAnswer{
			Issuer: leaf.Issuer.String(), Subject: leaf.Subject.String(), DNSNames: leaf.DNSNames, NotAfter: leaf.NotAfter,
			Version: tls.VersionName(res.TLS.Version), Verified: len(res.TLS.VerifiedChains) > 0,
		}
	}
	out.Path, err = c.pathTo(r.Context(), target.Hostname())
	return out, err
}

// pathTo returns the path to the peer of this name or address, or to the node that hosts the
// Service of this name.
func (c *tailnetClient) pathTo(ctx context.Context, host string) (path, error) {
	st, err := c.lc.Status(ctx)
	if err != nil {
		return path{}, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil && st.CurrentTailnet != nil && strings.HasSuffix(host, "."+st.CurrentTailnet.MagicDNSSuffix) {
		ip = c.lookUp(ctx, host)
	}
	for _, p := range st.Peer {
		full := strings.TrimSuffix(p.DNSName, ".")
		short, _, _ := strings.Cut(full, ".")
		if host == full || host == short {
			return pathOf(p), nil
		}
		for _, a := range p.TailscaleIPs {
			if a == ip {
				return pathOf(p), nil
			}
		}
		if ip.IsValid() && p.AllowedIPs != nil && p.AllowedIPs.ContainsFunc(func(r netip.Prefix) bool { return r.Contains(ip) }) {
			return pathOf(p), nil
		}
	}
	return path{}, fmt.Errorf("%q is no peer of this client", host)
}

// lookUp asks the tailnet's own DNS for the IPv4 address of a name; it knows Services, which are no
// peers.
func (c *tailnetClient) lookUp(ctx context.Context, name string) netip.Addr {
	answer, _, err := c.lc.QueryDNS(ctx, dns.Fqdn(name), "A")
	msg := new(dns.Msg)
	if err != nil || msg.Unpack(answer) != nil {
		return netip.Addr{}
	}
	for _, rr := range msg.Answer {
		if a, ok := rr.(*dns.A); ok {
			ip, _ := netip.AddrFromSlice(a.A.To4())
			return ip
		}
	}
	return netip.Addr{}
}

// transport dials through the tailnet alone and trusts the authorities in the PEM file roots alone:
// with none given, https is refused.
func (c *tailnetClient) transport(roots string) (*http.Transport, error) {
	pool := x509.NewCertPool()
	if roots != "" {
		pem, err := os.ReadFile(roots)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in it", roots)
		}
	}
	return &http.Transport{
		DialContext:     c.dialPeer,
		TLSClientConfig: &tls.Config{RootCAs: pool},
		// A browser keeps its connections; Go would keep two.
		MaxIdleConnsPerHost: 256,
	}, nil
}

// dialPeer connects to a peer. tsnet would try the network outside for a name it does not know;
// here that is an error.
func (c *tailnetClient) dialPeer(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, badRequest{err}
	}
	if _, err := c.pathTo(ctx, host); err != nil {
		return nil, err
	}
	return c.srv.Dial(ctx, network, addr)
}

func (c *tailnetClient) setDNS(r *http.Request) (any, error) {
	var req struct{ Name, Value string }
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
		return nil, badRequest{err}
	}
	return nil, c.lc.SetDNS(r.Context(), req.Name, req.Value)
}

func (c *tailnetClient) dial(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
	defer cancel()
	out, err := func() (net.Conn, error) {
		if target := r.FormValue("ingress"); target != "" {
			return c.ingress(ctx, r.FormValue("addr"), target, r.FormValue("src"))
		}
		return c.dialPeer(ctx, "tcp", r.FormValue("addr"))
	}()
	if err != nil {
		fail(w, err)
		return
	}
	defer out.Close()
	in, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	defer in.Close()
	io.WriteString(in, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	relay(in, buf.Reader, out)
}

// relay copies both ways, passes half-closes on, and returns when both directions have ended.
func relay(in net.Conn, inBuf *bufio.Reader, out net.Conn) {
	type halfCloser interface{ CloseWrite() error }
	done := make(chan struct{}, 2)
	pipe := func(dst net.Conn, src io.Reader) {
		_, err := io.Copy(dst, src)
		if h, ok := dst.(halfCloser); ok && err == nil {
			h.CloseWrite()
		} else {
			dst.Close()
		}
		done <- struct{}{}
	}
	go pipe(out, inBuf)
	go pipe(in, out)
	<-done
	<-done
}

// serve forwards connections to a tailnet port to a unix socket until ctx ends.
func (c *tailnetClient) serve(ctx context.Context, port uint16, socket string) error {
	ln, err := c.srv.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("unix", socket)
				if err != nil {
					c.logger.Printf("port %d: %v", port, err)
					return
				}
				defer out.Close()
				relay(in, bufio.NewReader(in), out)
			}()
		}
	}()
	return nil
}

// echoPackets sends datagrams that come to a UDP port back until ctx ends.
func (c *tailnetClient) echoPackets(ctx context.Context, port string) error {
	ip4, ip6 := c.srv.TailscaleIPs()
	for _, ip := range []netip.Addr{ip4, ip6} {
		pc, err := c.srv.ListenPacket("udp", net.JoinHostPort(ip.String(), port))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { pc.Close() })
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(buf[:n], from)
			}
		}()
	}
	return nil
}

// askPacket sends the body as a datagram each 200 ms until there is an answer.
func (c *tailnetClient) askPacket(r *http.Request) (any, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), 15*time.Second)
	defer cancel()
	pc, err := c.srv.Dial(ctx, "udp", r.FormValue("addr"))
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()
	go func() {
		for ctx.Err() == nil {
			pc.Write(body)
			time.Sleep(200 * time.Millisecond)
		}
	}()
	buf := make([]byte, 1<<16)
	n, err := pc.Read(buf)
	return buf[:n], err
}

// browse serves the reverse proxy to origin on a unix socket until ctx ends.
func (c *tailnetClient) browse(ctx context.Context, socket, origin, roots string) error {
	proxy, err := c.proxyTo(origin, roots, c.logger)
	if err != nil {
		return err
	}
	ln, err := listenUnix(socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: proxy, ErrorLog: c.logger}
	go srv.Serve(ln)
	context.AfterFunc(ctx, func() { srv.Close() })
	return nil
}

// proxyTo forwards plain HTTP, WebSockets too, to origin. The request's Host becomes the origin's,
// and so does its Origin header where it named the proxy: to the origin, the browser is on the
// origin's own page.
func (c *tailnetClient) proxyTo(origin, roots string, logger *log.Logger) (http.Handler, error) {
	target, err := url.Parse(origin)
	if err != nil || target.Scheme != "https" || target.Host == "" {
		return nil, fmt.Errorf("origin %q is no https URL", origin)
	}
	if roots == "" {
		return nil, errors.New("roots are missing: the PEM file of the authorities that --origin is verified against")
	}
	tr, err := c.transport(roots)
	if err != nil {
		return nil, err
	}
	return &httputil.ReverseProxy{
		Transport: tr,
		ErrorLog:  logger,
		Rewrite: func(r *httputil.ProxyRequest) {
			if o := r.In.Header.Get("Origin"); o == "http://"+r.In.Host || o == "https://"+r.In.Host {
				r.Out.Header.Set("Origin", target.Scheme+"://"+target.Host)
			}
			r.SetURL(target)
		},
		ModifyResponse: func(res *http.Response) error {
			// A redirect to the origin stays within the proxy.
			if loc, err := res.Location(); err == nil && loc.Scheme == target.Scheme && loc.Host == target.Host {
				loc.Scheme, loc.Host = "", ""
				res.Header.Set("Location", loc.String())
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			http.Error(w, "through the tailnet: "+err.Error(), http.StatusBadGateway)
		},
	}, nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
