package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/util/dnsname"
	"tailscale.com/util/rands"
	"tailscale.com/util/zstdframe"
)

// controlServer is Tailscale's testcontrol.Server with the parts put before it in which a real
// control server differs:
//
//   - a node that is known needs no auth key again; without a key an unknown node gets a login URL; a wrong key is refused in
//     the words of the real server. (testcontrol refuses every register request without the one key.)
//   - names are unique in the tailnet: the second "gatehouse" is "gatehouse-1", in its name, its certificate domain, and in
//     what it may set in DNS.
//   - a request testcontrol does not know gets 404. (testcontrol ends the process.)
//   - it has a name, and speaks https: as with Tailscale's, port 80 is for Noise alone, whose encryption is its own.
//   - it can be taken off the network and put back with its state.
//   - a node may host Tailscale Services, has certificates for their names, and its peers find them in DNS.
//   - there are people, tags and grants of app capabilities (policy.go). All nodes are one person's until told otherwise, as in a
//     tailnet of one's own.
//
// To stand between, it terminates Noise itself and hands the requests within to testcontrol's
// handler.
type controlServer struct {
	controlConfig
	tc *testcontrol.Server

	clientSecret string // of the OAuth client that may make auth keys
	accessToken  string // what that client gets for it

	mu     sync.Mutex
	noise  map[string]int      // connections, by the port they came to
	keys   map[string]*authKey // beside the one of the configuration
	srv    *http.Server
	conns  map[net.Conn]struct{}
	names  map[tailcfg.NodeID]nodeName
	logins map[string]*login // by path
	grants []grant
	people people
	hosted map[tailcfg.ServiceName]*hostedService
	polls  map[key.MachinePublic]int // map requests that are under way
	asked  map[int]int               // capability versions told to /key
}

type controlConfig struct {
	suffix  string
	authKey string
	derpMap *tailcfg.DERPMap
	setTXT  func(name, value string)
	logf    logger.Logf
	private key.MachinePrivate
	cert    tls.Certificate // of controlName and loginName
	keyText func() string

	headscale bool // headscale.go
}

// nodeName is what a node asked to be called, and what it is called.
type nodeName struct{ wanted, assigned string }

// authKey is an auth key with a limit.
type authKey struct {
	kind string // "once", "expired"
	tags []string
	used bool
}

// login is a login URL somebody is to visit.
type login struct {
	nodeKey key.NodePublic
	done    chan struct{}
	once    sync.Once
}

func newControl(cfg controlConfig) *controlServer {
	c := &controlServer{
		controlConfig: cfg,
		noise:         map[string]int{},
		conns:         map[net.Conn]struct{}{},
		clientSecret:  "tskey-client-k" + rands.HexString(10) + "CNTRL-" + rands.HexString(32),
		accessToken:   rands.HexString(32),
		keys:          map[string]*authKey{},
		names:         map[tailcfg.NodeID]nodeName{},
		logins:        map[string]*login{},
		people:        people{},
		hosted:        map[tailcfg.ServiceName]*hostedService{},
		polls:         map[key.MachinePublic]int{},
		asked:         map[int]int{},
	}
	caps := tailcfg.NodeCapMap{
		tailcfg.CapabilityHTTPS:                       nil,
		tailcfg.NodeAttrDisableCaptivePortalDetection: nil,
	}
	c.tc = &testcontrol.Server{
		Logf:                    cfg.logf,
		DERPMap:                 cfg.derpMap,
		MagicDNSDomain:          cfg.suffix,
		DNSConfig:               &tailcfg.DNSConfig{Proxied: true, Domains: []string{cfg.suffix}},
		AllOnline:               true,
		AllNodesSameUser:        true,
		TagOwners:               map[string][]string{"tag:lab": nil}, // a node that joins gets the tags it asks for
		DefaultNodeCapabilities: &caps,
		ExplicitBaseURL:         controlURL,
		HoldMapRequest:          c.beforeMap,
		ModifyFirstMapResponse: func(res *tailcfg.MapResponse, _ *tailcfg.MapRequest) {
			res.Debug = &tailcfg.Debug{DisableLogTail: true}
		},
		// Reached only when testcontrol has found that the name is `_acme-challenge.` and the node's own
		// name.
		OnSetDNS: func(req *tailcfg.SetDNSRequest) error {
			cfg.setTXT(req.Name, req.Value)
			return nil
		},
	}
	// testcontrol builds its routes with its first request.
	c.tc.ServeHTTP(discardResponse{http.Header{}}, must(http.NewRequest("GET", "/generate_204", nil)))
	return c
}

// goneAfter is when a node that says nothing more, as one that lost its power, is away, and another host of a Tailscale Service
// takes over. How long Tailscale's own server waits is not published.
const goneAfter = 15 * time.Second

// mortal accepts connections that end when the other side is gone for goneAfter, whether something waits for it or not (tcp(7):
// TCP_USER_TIMEOUT; accepted sockets have what the listening one has).
var mortal = net.ListenConfig{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: goneAfter / 3, Interval: goneAfter / 3, Count: 2},
	Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(goneAfter.Milliseconds()))
		})
		return cmp.Or(err, failed)
	},
}

// start puts the server on the network. It is an error to start it twice.
func (c *controlServer) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.srv != nil {
		return errors.New("the control server runs already")
	}
	var lns []net.Listener
	for _, ip := range []string{controlIP, controlIP6} {
		for _, port := range []string{"80", "443"} {
			ln, err := mortal.Listen(context.Background(), "tcp", net.JoinHostPort(ip, port))
			if err != nil {
				for _, ln := range lns {
					ln.Close()
				}
				return err
			}
			lns = append(lns, ln)
		}
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(c.serveOuter),
		// What a client that gave up leaves behind is no news.
		ErrorLog: log.New(logger.FuncWriter(c.logf), "", 0),
		// Noise takes the connection over, which HTTP/2 does not allow.
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{c.cert}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		// Noise hijacks its connections, and http.Server forgets those: kept here, so that stop can end
		// them.
		ConnState: func(nc net.Conn, s http.ConnState) {
			c.mu.Lock()
			defer c.mu.Unlock()
			switch s {
			case http.StateNew:
				c.conns[nc] = struct{}{}
			case http.StateClosed:
				delete(c.conns, nc)
			}
		},
	}
	c.srv = srv
	for _, ln := range lns {
		if strings.HasSuffix(ln.Addr().String(), ":443") {
			go srv.ServeTLS(ln, "", "")
		} else {
			go srv.Serve(ln)
		}
	}
	return nil
}

// stop takes the server off the network: connections end, new ones are refused. What it knows is
// kept.
func (c *controlServer) stop() error {
	c.mu.Lock()
	srv, conns := c.srv, c.conns
	c.srv, c.conns = nil, map[net.Conn]struct{}{}
	c.mu.Unlock()
	if srv == nil {
		return errors.New("the control server is stopped already")
	}
	err := srv.Close()
	for nc := range conns {
		nc.Close()
	}
	return err
}

// serveOuter serves what is not within Noise.
func (c *controlServer) serveOuter(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.TLS == nil && r.URL.Path != "/ts2021" && r.URL.Path != "/generate_204":
		http.Redirect(w, r, "https://"+r.Host+r.URL.RequestURI(), http.StatusMovedPermanently)
	case r.URL.Path == "/key" && c.headscale:
		c.serveHeadscaleKey(w, r)
	case r.URL.Path == "/key":
		writeJSON(w, &tailcfg.OverTLSPublicKeyResponse{PublicKey: c.private.Public()})
	case r.URL.Path == "/ts2021":
		c.serveNoise(w, r)
	case r.URL.Path == "/generate_204":
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/api/v2/oauth/token" || r.URL.Path == "/api/v2/tailnet/-/keys":
		c.serveAPI(w, r)
	case strings.HasPrefix(r.URL.Path, "/login/"):
		// The person who opens the URL is the one who may say yes: there are no accounts here.
		if err := c.completeLogin(r.URL.Path); err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		io.WriteString(w, "The device has joined the tailnet.\n")
	default:
		http.NotFound(w, r)
	}
}

func (c *controlServer) serveNoise(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.private, nil)
	if err != nil {
		c.logf("noise from %s: %v", r.RemoteAddr, err)
		return
	}
	defer conn.Close()
	port := "80"
	if r.TLS != nil {
		port = "443"
	}
	c.mu.Lock()
	c.noise[port]++
	c.mu.Unlock()
	peer := conn.Peer()
	ctx, cancel := context.WithCancel(machineContext{r.Context(), peer})
	defer cancel()
	var h2 http2.Server
	h2.ServeConn(conn, &http2.ServeConnOpts{
		Context: ctx,
		BaseConfig: &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serveInner(w, r, peer) }),
		},
	})
}

// machineContext gives testcontrol the machine key of the Noise connection. testcontrol looks it up
// by a key of a type it does not export, so the type is known by its name.
type machineContext struct {
	context.Context
	machine key.MachinePublic
}

func (m machineContext) Value(k any) any {
	if fmt.Sprintf("%T", k) == "testcontrol.peerMachinePublicContextKey" {
		return m.machine
	}
	return m.Context.Value(k)
}

// serveInner serves one request from within Noise.
func (c *controlServer) serveInner(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	switch {
	case r.URL.Path == "/machine/register":
		c.serveRegister(w, r, machine)
	case r.URL.Path == "/machine/map":
		c.poll(machine, 1)
		defer c.poll(machine, -1)
		c.tc.ServeHTTP(&mapWriter{ResponseWriter: w, edit: func(msg []byte) ([]byte, error) { return c.addPolicy(msg, machine) }}, r)
	case r.URL.Path == "/machine/set-dns" && c.headscale:
		http.Error(w, "Not implemented yet", http.StatusNotImplemented)
	case r.URL.Path == "/machine/set-dns":
		c.serveSetDNS(w, r, machine)
	case r.URL.Path == "/machine/update-health",
		strings.HasPrefix(r.URL.Path, "/machine/tka/"), strings.HasPrefix(r.URL.Path, "/c2n/"):
		c.tc.ServeHTTP(w, r)
	default:
		c.logf("unknown request %s %s", r.Method, r.URL.Path)
		http.NotFound(w, r)
	}
}

// mapWriter adds to map responses what testcontrol leaves out, and corrects their clock:
// testcontrol says in each that it is 2020, and clients judge by the control server's clock whose
// key has expired. Every message is four bytes of length, then JSON, compressed when the client
// asked so.
type mapWriter struct {
	http.ResponseWriter
	edit   func(msg []byte) ([]byte, error)
	buf    []byte
	failed bool // an error's plain text, not messages
}

func (m *mapWriter) WriteHeader(status int) {
	m.failed = status != http.StatusOK
	m.ResponseWriter.WriteHeader(status)
}

var controlTime2020 = regexp.MustCompile(`"ControlTime":"2020-[^"]*"`)

func (m *mapWriter) Write(b []byte) (int, error) {
	if m.failed {
		return m.ResponseWriter.Write(b)
	}
	m.buf = append(m.buf, b...)
	for len(m.buf) >= 4 {
		n := int(binary.LittleEndian.Uint32(m.buf))
		if len(m.buf) < 4+n {
			break
		}
		msg := m.buf[4 : 4+n]
		compressed := n > 0 && msg[0] != '{'
		var err error
		if compressed {
			if msg, err = zstdframe.AppendDecode(nil, msg); err != nil {
				return 0, err
			}
		}
		msg = controlTime2020.ReplaceAll(msg, fmt.Appendf(nil, `"ControlTime":%q`, time.Now().UTC().Format(time.RFC3339Nano)))
		if msg, err = m.edit(msg); err != nil {
			return 0, err
		}
		if compressed {
			msg = zstdframe.AppendEncode(nil, msg, zstdframe.FastestCompression)
		}
		out := append(binary.LittleEndian.AppendUint32(nil, uint32(len(msg))), msg...)
		if _, err := m.ResponseWriter.Write(out); err != nil {
			return 0, err
		}
		m.buf = m.buf[4+n:]
	}
	return len(b), nil
}

func (m *mapWriter) Flush() { m.ResponseWriter.(http.Flusher).Flush() }

// serveRegister decides whether a node may join, and has testcontrol register it if so.
func (c *controlServer) serveRegister(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var req tailcfg.RegisterRequest
	if err := json.Unmarshal(body, &req); err != nil || req.Version == 0 || req.NodeKey.IsZero() || req.Hostinfo == nil {
		http.Error(w, "malformed register request", http.StatusBadRequest)
		return
	}
	// An expiry in the past is how a client logs out.
	if !req.Expiry.IsZero() && req.Expiry.Before(time.Now()) {
		if n := c.tc.Node(req.NodeKey); n != nil && n.Machine == machine {
			c.setExpiry(n, req.Expiry)
		}
		writeJSON(w, tailcfg.RegisterResponse{NodeKeyExpired: true})
		return
	}
	known := c.tc.Node(req.NodeKey)
	authKey := ""
	var tags []string // of the key
	if req.Auth != nil {
		authKey = req.Auth.AuthKey
	}
	switch {
	case known != nil && known.Machine != machine:
		writeJSON(w, tailcfg.RegisterResponse{Error: "node key belongs to another machine"})
		return
	case known != nil:
		// Its node key is its credential now: an auth key is for joining alone.
	case c.headscale && authKey != "" && len(req.Hostinfo.RequestTags) > 0:
		writeJSON(w, tailcfg.RegisterResponse{Error: fmt.Sprintf("requested tags %v are invalid or not permitted", req.Hostinfo.RequestTags)})
		return
	case authKey == c.authKey:
	case authKey != "":
		var refusal string
		if tags, refusal = c.useKey(authKey); refusal != "" {
			c.logf("register: %q: %s", req.Hostinfo.Hostname, refusal)
			writeJSON(w, tailcfg.RegisterResponse{Error: refusal})
			return
		}
	case req.Followup != "":
		if !c.awaitLogin(r.Context(), req.Followup, req.NodeKey) {
			writeJSON(w, tailcfg.RegisterResponse{Error: "the login URL is of another node, or forgotten"})
			return
		}
	default:
		writeJSON(w, tailcfg.RegisterResponse{AuthURL: c.newLogin(req.NodeKey)})
		return
	}
	c.retire(req.OldNodeKey, req.NodeKey, machine)
	req.Followup = "" // answered here; testcontrol would wait for a login of its own
	req.Auth = nil
	if body, err = json.Marshal(req); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	r2 := r.Clone(r.Context())
	r2.Body = io.NopCloser(bytes.NewReader(body))
	r2.ContentLength = int64(len(body))
	c.tc.ServeHTTP(w, r2)
	if n := c.tc.Node(req.NodeKey); n != nil {
		if tags != nil {
			n.Tags = tags
		}
		c.rename(n, n.Hostinfo.Hostname())
	}
}

// newKey makes an auth key that works once, or has expired.
func (c *controlServer) newKey(kind string, tags []string) (string, error) {
	if kind != "once" && kind != "expired" {
		return "", fmt.Errorf("kind %q is none of once, expired", kind)
	}
	k := c.keyText()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[k] = &authKey{kind: kind, tags: tags}
	return k, nil
}

// useKey returns the tags of an auth key, or why it is refused, in the words that users of the real
// server report (tailscale#9715, tailscale#17047).
func (c *controlServer) useKey(k string) (tags []string, refusal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ak := c.keys[k]
	switch {
	case c.headscale && ak == nil:
		return nil, "invalid pre auth key"
	case c.headscale && ak.kind == "expired":
		return nil, "authkey expired"
	case c.headscale && ak.used:
		return nil, "authkey already used"
	case ak == nil || ak.kind == "expired":
		return nil, "invalid key: API key does not exist"
	case ak.used:
		id, _, _ := strings.Cut(strings.TrimPrefix(k, "tskey-auth-"), "-")
		return nil, "invalid key: API key " + id + " not valid"
	}
	ak.used = true
	return ak.tags, ""
}

// serveAPI serves the two calls by which an OAuth client makes an auth key
// (https://tailscale.com/api).
func (c *controlServer) serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/api/v2/oauth/token" {
		_, secret, _ := r.BasicAuth()
		if secret == "" {
			secret = r.PostFormValue("client_secret")
		}
		if secret != c.clientSecret {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"error":"invalid_client","error_description":"API token invalid"}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"access_token": c.accessToken, "token_type": "Bearer", "expires_in": 3600})
		return
	}
	var req struct {
		Capabilities struct {
			Devices struct{ Create struct{ Tags []string } }
		}
	}
	switch err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); {
	case r.Header.Get("Authorization") != "Bearer "+c.accessToken:
		http.Error(w, `{"message":"API token invalid"}`, http.StatusUnauthorized)
	case err != nil || len(req.Capabilities.Devices.Create.Tags) == 0:
		http.Error(w, `{"message":"requested tags [] are invalid or not permitted"}`, http.StatusBadRequest)
	default:
		k, err := c.newKey("once", req.Capabilities.Devices.Create.Tags)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"id": "k", "key": k})
	}
}

// retire makes way for a node's new key. testcontrol copies the entry of the old key to the new
// one, and keeps the old one with the same ID and addresses, which would shadow the new one in the
// eyes of its peers.
func (c *controlServer) retire(old, new key.NodePublic, machine key.MachinePublic) {
	if old.IsZero() || old == new || c.tc.Node(new) != nil {
		return
	}
	n := c.tc.Node(old)
	if n == nil || n.Machine != machine {
		return
	}
	fresh := n.Clone()
	fresh.Key = new
	fresh.KeyExpiry = time.Time{}
	n.ID += 1 << 20
	n.StableID += "-old"
	n.Name = ""
	n.Addresses, n.AllowedIPs = nil, nil
	n.Endpoints = nil
	n.KeyExpiry = time.Now().Add(-time.Hour)
	c.tc.UpdateNode(n)
	c.tc.UpdateNode(fresh)
}

// beforeMap is called by testcontrol with each map request before it looks at it.
func (c *controlServer) beforeMap(req *tailcfg.MapRequest) func() {
	n := c.tc.Node(req.NodeKey)
	if n == nil || req.Hostinfo == nil {
		return nil
	}
	// testcontrol derives certificate domains from Hostinfo: it must say the name that was assigned.
	req.Hostinfo = req.Hostinfo.Clone()
	req.Hostinfo.Hostname = c.rename(n, req.Hostinfo.Hostname)
	return nil
}

// rename gives node n the name it wants, or the first free one made from it, and returns it.
func (c *controlServer) rename(n *tailcfg.Node, wanted string) string {
	wanted = dnsname.SanitizeHostname(wanted)
	if wanted == "" {
		wanted = "node"
	}
	c.mu.Lock()
	have := c.names[n.ID]
	if have.wanted == wanted || have.assigned == wanted {
		c.mu.Unlock()
		return have.assigned
	}
	assigned := wanted
	for i := 1; c.takenLocked(assigned, n.ID); i++ {
		assigned = fmt.Sprintf("%s-%d", wanted, i)
	}
	c.names[n.ID] = nodeName{wanted, assigned}
	c.mu.Unlock()

	n.Name = assigned + "." + c.suffix + "."
	hi := n.Hostinfo.AsStruct()
	if hi == nil {
		hi = &tailcfg.Hostinfo{}
	}
	hi.Hostname = assigned
	n.Hostinfo = hi.View()
	c.tc.UpdateNode(n)
	c.logf("node %d (%v) is %s", n.ID, n.Key.ShortString(), n.Name)
	return assigned
}

func (c *controlServer) takenLocked(name string, but tailcfg.NodeID) bool {
	for id, n := range c.names {
		if id != but && n.assigned == name {
			return true
		}
	}
	return false
}

// newLogin returns a login URL for a node, the same one while nobody has visited it.
func (c *controlServer) newLogin(nk key.NodePublic) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, l := range c.logins {
		if l.nodeKey == nk {
			return "https://" + loginName + path
		}
	}
	path := "/login/" + rands.HexString(16)
	c.logins[path] = &login{nodeKey: nk, done: make(chan struct{})}
	return "https://" + loginName + path
}

func (c *controlServer) awaitLogin(ctx context.Context, url string, nk key.NodePublic) bool {
	c.mu.Lock()
	l := c.logins[strings.TrimPrefix(url, "https://"+loginName)]
	c.mu.Unlock()
	if l == nil || l.nodeKey != nk {
		return false
	}
	select {
	case <-l.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// completeLogin does what a person does who opens the login URL (or its path) and agrees.
func (c *controlServer) completeLogin(url string) error {
	c.mu.Lock()
	l := c.logins[strings.TrimPrefix(url, "https://"+loginName)]
	c.mu.Unlock()
	if l == nil {
		return fmt.Errorf("no login is waiting at %q", url)
	}
	l.once.Do(func() { close(l.done) })
	return nil
}

// pendingLogins returns the login URLs nobody has visited.
func (c *controlServer) pendingLogins() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	urls := []string{}
	for path, l := range c.logins {
		select {
		case <-l.done:
		default:
			urls = append(urls, "https://"+loginName+path)
		}
	}
	return urls
}

// noisePorts returns how many Noise connections have come to each port.
func (c *controlServer) noisePorts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.noise)
}

// adminNode is a registered node as GET /nodes shows it.
type adminNode struct {
	ID        int64            `json:"id"`
	Name      string           `json:"name"`     // with the suffix, without the last dot
	Hostname  string           `json:"hostname"` // what the node asked to be called
	Addresses []netip.Addr     `json:"addresses"`
	Endpoints []netip.AddrPort `json:"endpoints"`
	HomeDERP  int              `json:"homeDERP"`
	OS        string           `json:"os"`
	Tags      []string         `json:"tags,omitempty"`
	Expired   bool             `json:"expired"`
	// What the node says of the machine it runs on, for the admin console.
	Hostinfo *tailcfg.Hostinfo `json:"hostinfo,omitempty"`
}

func (c *controlServer) nodes() []adminNode {
	list := []adminNode{}
	for _, n := range c.tc.AllNodes() {
		if n.Name == "" { // retired
			continue
		}
		a := adminNode{
			ID:        int64(n.ID),
			Name:      strings.TrimSuffix(n.Name, "."),
			Endpoints: n.Endpoints,
			HomeDERP:  n.HomeDERP,
			Tags:      n.Tags,
			Expired:   !n.KeyExpiry.IsZero() && n.KeyExpiry.Before(time.Now()),
		}
		for _, p := range n.Addresses {
			a.Addresses = append(a.Addresses, p.Addr())
		}
		if n.Hostinfo.Valid() {
			a.OS = n.Hostinfo.OS()
			a.Hostinfo = n.Hostinfo.AsStruct()
		}
		c.mu.Lock()
		a.Hostname = c.names[n.ID].wanted
		c.mu.Unlock()
		list = append(list, a)
	}
	return list
}

// node returns the node with this name, or an error for people.
func (c *controlServer) node(name string) (*tailcfg.Node, error) {
	if n := c.named(name); n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("no node is called %q: GET /nodes lists them", name)
}

// expire makes the key of a node expired as of a minute ago, or good for so many seconds more.
func (c *controlServer) expire(name, seconds string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	end := time.Now().Add(-time.Minute)
	if seconds != "" {
		d, err := time.ParseDuration(seconds + "s")
		if err != nil {
			return err
		}
		end = time.Now().Add(d)
	}
	c.setExpiry(n, end)
	return nil
}

// requireApproval makes nodes that join from now on wait for approve.
func (c *controlServer) requireApproval(on bool) { c.tc.RequireMachineAuth = on }

func (c *controlServer) approve(name string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	n.MachineAuthorized = true
	c.tc.UpdateNode(n)
	return nil
}

// hostedService is a Tailscale Service and the nodes that may host it.
type hostedService struct {
	hosts   []tailcfg.NodeID
	primary tailcfg.NodeID // the one that peers are sent to
	addr    netip.Addr
}

// hostService gives a Tailscale Service an address, at which its peers find it on node: what an admin does who defines the Service
// and approves the node as a host. Its name is then in the tailnet's DNS, and the node may have a certificate for it (policy.go).
// Further nodes stand by: see poll.
func (c *controlServer) hostService(name, service, ip string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return err
	}
	svc := tailcfg.ServiceName(service)
	if err := svc.Validate(); err != nil {
		return err
	}
	c.mu.Lock()
	h := c.hosted[svc]
	if h == nil || h.addr != addr {
		h = &hostedService{primary: n.ID, addr: addr}
		c.hosted[svc] = h
	}
	if !slices.Contains(h.hosts, n.ID) {
		h.hosts = append(h.hosts, n.ID)
	}
	primary := h.primary == n.ID
	all := tailcfg.ServiceIPMappings{}
	for name, h := range c.hosted {
		if slices.Contains(h.hosts, n.ID) {
			all[name] = []netip.Addr{h.addr}
		}
	}
	c.mu.Unlock()
	mapping, err := json.Marshal(all)
	if err != nil {
		return err
	}
	caps := tailcfg.NodeCapMap{tailcfg.NodeAttrServiceHost: {tailcfg.RawMessage(mapping)}}
	for k, v := range *c.tc.DefaultNodeCapabilities {
		caps[k] = v
	}
	if primary {
		c.route(n, addr, true)
	}
	c.tc.SetNodeCapMap(n.Key, caps)
	c.pushAll()
	return nil
}

// route sends peers that want addr to node n, or no more.
func (c *controlServer) route(n *tailcfg.Node, addr netip.Addr, here bool) {
	p := netip.PrefixFrom(addr, addr.BitLen())
	n.AllowedIPs = slices.DeleteFunc(slices.Clone(n.AllowedIPs), func(q netip.Prefix) bool { return q == p })
	if here {
		n.AllowedIPs = append(n.AllowedIPs, p)
	}
	c.tc.UpdateNode(n)
}

// hostGrace is how long a host of a Service may be away before another takes its place.
const hostGrace = time.Second

// poll counts the map requests of a machine. One without any is away: peers of a Service that it hosts are sent to the next host
// that is there, as Tailscale's control server does (https://tailscale.com/kb/1552/tailscale-services, high availability).
func (c *controlServer) poll(machine key.MachinePublic, delta int) {
	c.mu.Lock()
	c.polls[machine] += delta
	away := c.polls[machine] == 0
	c.mu.Unlock()
	if away {
		time.AfterFunc(hostGrace, func() { c.failover(machine) })
	}
}

func (c *controlServer) failover(gone key.MachinePublic) {
	byID := map[tailcfg.NodeID]*tailcfg.Node{}
	for _, n := range c.tc.AllNodes() {
		byID[n.ID] = n
	}
	moved := false
	c.mu.Lock()
	for svc, h := range c.hosted {
		from := byID[h.primary]
		if c.polls[gone] > 0 || from == nil || from.Machine != gone {
			continue
		}
		for _, id := range h.hosts {
			to := byID[id]
			if to == nil || c.polls[to.Machine] == 0 {
				continue
			}
			c.logf("%s: from %s to %s", svc, from.Name, to.Name)
			h.primary = id
			c.mu.Unlock()
			c.route(from, h.addr, false)
			c.route(to, h.addr, true)
			c.mu.Lock()
			moved = true
			break
		}
	}
	c.mu.Unlock()
	if moved {
		c.pushAll()
	}
}

// serveSetDNS publishes challenges for the names of Services a node may host, and leaves those of its own name to testcontrol, which refuses all others.
func (c *controlServer) serveSetDNS(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var req tailcfg.SetDNSRequest
	if err := json.Unmarshal(body, &req); err == nil && req.Type == "TXT" && req.Value != "" {
		name, ok := strings.CutPrefix(req.Name, "_acme-challenge.")
		n := c.tc.Node(req.NodeKey)
		if ok && n != nil && n.Machine == machine && slices.Contains(c.serviceNames(n.ID), name) {
			c.setTXT(req.Name, req.Value)
			writeJSON(w, tailcfg.SetDNSResponse{})
			return
		}
	}
	c.tc.ServeHTTP(w, r)
}

// serviceNames returns the full names of the Services that a node may host.
func (c *controlServer) serviceNames(id tailcfg.NodeID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := []string{}
	for svc, h := range c.hosted {
		if slices.Contains(h.hosts, id) {
			names = append(names, svc.WithoutPrefix()+"."+c.suffix)
		}
	}
	slices.Sort(names)
	return names
}

func (c *controlServer) setExpiry(n *tailcfg.Node, t time.Time) {
	n.KeyExpiry = t.UTC().Truncate(time.Second)
	c.tc.UpdateNode(n)
}

// discardResponse is a ResponseWriter that keeps nothing.
type discardResponse struct{ header http.Header }

func (d discardResponse) Header() http.Header         { return d.header }
func (d discardResponse) Write(b []byte) (int, error) { return len(b), nil }
func (d discardResponse) WriteHeader(int)             {}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
