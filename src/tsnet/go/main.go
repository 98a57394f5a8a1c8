//go:build wasip1

// Command tsnet is stock tailscale.com/tsnet behind a small protocol for a Node.js host: requests arrive on one stream,
// answers and events leave through one function, and every tailnet connection is a stream of the host's.
package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/tsnet/aead"
	"gatehouse/tsnet/vnet"
	"github.com/tailscale/wireguard-go/device"
	"tailscale.com/client/local"
	"tailscale.com/hostinfo"
	"tailscale.com/ipn"
	"tailscale.com/logpolicy"
	"tailscale.com/logtail"
	"tailscale.com/net/dnsfallback"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// request is what the host asks. Method "cancel" ends the request of the same ID.
type request struct {
	ID     uint64          `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// event is all that goes to the host: the answer to a request (ID) or a notice (Event).
type event struct {
	ID     uint64    `json:"id,omitempty"`
	Result any       `json:"result,omitempty"`
	Error  *rpcError `json:"error,omitempty"`

	Event string `json:"event,omitempty"` // as the events of the host's Server, and "save" (saveRequest)
	Value any    `json:"value,omitempty"`
}

type rpcError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *rpcError) Error() string { return e.Message }

// streamMeta tells the host what a new stream is: a connection to listener, or the one dialled by request Dial.
type streamMeta struct {
	Listener uint64 `json:"listener,omitempty"`
	Dial     uint64 `json:"dial,omitempty"`
	Local    string `json:"local"`
	Remote   string `json:"remote"`
	Target   string `json:"target,omitempty"` // what a connection by Funnel was made to, name:port
}

type startParams struct {
	Hostname      string   `json:"hostname"`
	AuthKey       string   `json:"authKey"`
	ControlURL    string   `json:"controlURL"`
	ClientSecret  string   `json:"clientSecret"`
	AdvertiseTags []string `json:"advertiseTags"`
	Ephemeral     bool     `json:"ephemeral"`
	Port          uint16   `json:"port"`
	RootsPEM      string   `json:"rootsPEM"`
	BootstrapDNS  bool     `json:"bootstrapDNS"`
	App           string   `json:"app"`
	StateFile     string   `json:"stateFile"` // its name outside, for messages
	OwnStore      bool     `json:"ownStore"`  // the caller keeps the state, which begins as State
	State         string   `json:"state"`
	Verbose       bool     `json:"verbose"`
	TUN           string   `json:"tun"` // interface of the kernel's that has the packets; empty: netstack

	AcceptRoutes    bool     `json:"acceptRoutes"`
	AdvertiseRoutes []string `json:"advertiseRoutes"` // CIDR
}

type node struct {
	srv *tsnet.Server
	lc  *local.Client

	params       startParams
	stopWatching context.CancelFunc
	loggingOut   atomic.Bool
	exitNode     atomic.Bool // one is in use
	advertising  sync.Mutex  // held while the Services are told to the control server

	mu           sync.Mutex
	saves        map[uint64]chan error // state given to the caller's store, by number
	cancels      map[uint64]context.CancelFunc
	listeners    map[uint64]net.Listener
	services     map[serviceKey]uint64 // listener
	serviceAddrs map[netip.Addr]tailcfg.ServiceName
	open         map[net.Conn]struct{} // connections of the tailnet
	fallback     uint64                // the listener of what no other takes
}

func main() {
	log.SetFlags(0)
	installHostNetwork()
	describeMachine()
	// Where it cannot be loaded, and with TSNET_SIMD=0, Go's own code stays.
	if os.Getenv("TSNET_SIMD") != "0" && aead.Load() {
		device.NewAEAD = aead.New
		vnet.CopySum = aead.CopySum
	}
	// For the OAuth exchange, which takes the default client.
	http.DefaultTransport.(*http.Transport).DialContext = hostDialer{}.DialContext
	fd := hostControl()
	if err := errnoOf(fd); err != nil {
		log.Fatalf("tsnet: control stream: %v", err)
	}
	n := &node{
		saves: map[uint64]chan error{}, cancels: map[uint64]context.CancelFunc{}, listeners: map[uint64]net.Listener{},
		services: map[serviceKey]uint64{}, open: map[net.Conn]struct{}{},
	}
	r := bufio.NewReader(newFile(fd, "control"))
	for {
		var size uint32
		if err := binary.Read(r, binary.LittleEndian, &size); err != nil {
			if err == io.EOF {
				os.Exit(0)
			}
			log.Fatalf("tsnet: control stream: %v", err)
		}
		buf := make([]byte, size)
		if _, err := io.ReadFull(r, buf); err != nil {
			log.Fatalf("tsnet: control stream: %v", err)
		}
		var req request
		if err := json.Unmarshal(buf, &req); err != nil {
			log.Fatalf("tsnet: control stream: %v", err)
		}
		n.serve(req)
	}
}

func (n *node) serve(req request) {
	switch req.Method {
	case "saved":
		n.saved(req)
		return
	case "cancel":
		n.mu.Lock()
		if cancel := n.cancels[req.ID]; cancel != nil {
			cancel()
		}
		n.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	n.cancels[req.ID] = cancel
	n.mu.Unlock()
	go func() {
		res, err := n.call(ctx, req)
		aborted := ctx.Err() != nil
		cancel()
		n.mu.Lock()
		delete(n.cancels, req.ID)
		n.mu.Unlock()
		if err == nil {
			if res == nil {
				res = struct{}{}
			}
			emit(event{ID: req.ID, Result: res})
			return
		}
		var re *rpcError
		if !errors.As(err, &re) {
			re = &rpcError{Code: "TSNET_BACKEND", Message: err.Error()}
		}
		if aborted {
			re.Code = "TSNET_ABORTED"
		}
		emit(event{ID: req.ID, Error: re})
	}()
}

func (n *node) call(ctx context.Context, req request) (any, error) {
	switch req.Method {
	case "start":
		var p startParams
		if err := json.Unmarshal(req.Params, &p); err != nil {
			return nil, err
		}
		return nil, n.start(p)
	case "close":
		// Whoever waits, ends; the LocalAPI's server would wait 5 s for those that watch the bus.
		n.mu.Lock()
		for id, cancel := range n.cancels {
			if id != req.ID {
				cancel()
			}
		}
		n.mu.Unlock()
		if n.srv != nil {
			n.abortAll()
			n.stopWatching()
			// The LocalAPI's server waits 5 s for a connection on which no request has come (the watcher's, when close
			// meets its start); all else is done by then.
			done := make(chan struct{})
			go func() {
				n.srv.Close()
				close(done)
			}()
			select {
			case <-done:
			case <-time.After(2 * time.Second):
			}
		}
		emit(event{ID: req.ID, Result: struct{}{}})
		os.Exit(0)
	}
	if n.lc == nil {
		return nil, &rpcError{"TSNET_NOT_STARTED", "the server has not been started"}
	}
	var p struct {
		Addr     string `json:"addr"`
		Port     uint16 `json:"port"`
		Name     string `json:"name"`
		Value    string `json:"value"`
		Listener uint64 `json:"listener"`
		Path     string `json:"path"`
		Body     []byte `json:"body"`
		Only     bool   `json:"only"`
	}
	if len(req.Params) > 0 {
		if err := json.Unmarshal(req.Params, &p); err != nil {
			return nil, err
		}
	}
	switch req.Method {
	case "up":
		return n.up(ctx)
	case "logout":
		return nil, n.logout(ctx)
	case "status":
		return n.status(ctx)
	case "listen":
		return n.listen(req.ID, p.Addr)
	case "listenService":
		return n.listenService(ctx, req.ID, p.Name, p.Port)
	case "listenFallback":
		return nil, n.listenFallback(req.ID)
	case "listenFunnel":
		return n.listenFunnel(ctx, req.ID, p.Addr, p.Only)
	case "listenPacket":
		return n.listenPacket(ctx, req.ID, p.Addr, p.Port)
	case "dialPacket":
		return n.dialPacket(ctx, req.ID, p.Addr)
	case "unlisten":
		n.mu.Lock()
		ln := n.listeners[p.Listener]
		delete(n.listeners, p.Listener)
		if n.fallback == p.Listener {
			n.fallback = 0
		}
		n.mu.Unlock()
		if ln != nil {
			return nil, ln.Close()
		}
		return nil, n.endService(ctx, p.Listener)
	case "dial":
		c, err := n.dial(ctx, p.Addr)
		if err != nil {
			return nil, err
		}
		return nil, n.handOver(c, streamMeta{Dial: req.ID, Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()})
	case "whoIs":
		return n.whoIs(ctx, p.Addr)
	case "setDNS":
		if err := n.lc.SetDNS(ctx, p.Name, p.Value); err != nil {
			return nil, &rpcError{"TSNET_SET_DNS", err.Error()}
		}
		return nil, nil
	case "localAPI":
		return n.localAPI(ctx, p.Name, p.Path, p.Body)
	case "resolve":
		return n.resolve(ctx, p.Name)
	case "useExitNode":
		return nil, n.useExitNode(ctx, p.Name)
	case "capture":
		return nil, n.capture(req.ID)
	case "debugConnections":
		return n.debugConnections(), nil
	case "networkChanged":
		n.srv.Sys().NetMon.Get().InjectEvent()
		return nil, nil
	}
	return nil, &rpcError{"TSNET_METHOD", "no such method: " + req.Method}
}

// stateDir is where the host has the directory of the state.
const stateDir = "/state"

// dropDamagedLogID removes the log's identifier where it is damaged: tsnet would not start for it
// (tsnet.go, startLogger), and it is nothing but a random number, of which a new one is as good.
func dropDamagedLogID() {
	file := filepath.Join(stateDir, "tailscaled.log.conf")
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	if c, err := logpolicy.ConfigFromBytes(b); err == nil && c.Validate(logtail.CollectionNode) == nil {
		return
	}
	os.Remove(file)
}

func (n *node) start(p startParams) error {
	if n.srv != nil {
		return &rpcError{"TSNET_STARTED", "the server has been started already"}
	}
	if p.RootsPEM != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(p.RootsPEM)) {
			return &rpcError{"TSNET_ROOTS", "no certificate in the list of authorities"}
		}
		x509.SetFallbackRoots(pool) // there are no system roots on wasip1
	}
	dnsfallback.Disabled = !p.BootstrapDNS
	if p.App != "" {
		hostinfo.SetApp(p.App)
	}
	st, err := n.openStore(p)
	if err != nil {
		return &rpcError{"TSNET_STATE", err.Error()}
	}
	dropDamagedLogID()
	srv, err := newServer(p, st)
	if err != nil {
		return err
	}
	err = srv.Start()
	if words, ok := authProblem(err); ok && st.known() {
		// A node that is known needs no new key: that none could be made now is not what keeps it from the tailnet.
		emit(event{Event: "message", Value: words})
		p.AuthKey, p.ClientSecret = "", ""
		if srv, err = newServer(p, st); err != nil {
			return err
		}
		err = srv.Start()
	}
	if err != nil {
		if failed := st.failure(); failed != nil {
			return &rpcError{"TSNET_STATE", failed.Error()}
		}
		if words, ok := authProblem(err); ok {
			return &rpcError{"TSNET_AUTH", words}
		}
		return err
	}
	// One for both, as the order in which tsnet asks several is not known.
	srv.RegisterFallbackTCPHandler(func(src, dst netip.AddrPort) (func(net.Conn), bool) {
		if handler, ok := n.serviceFlow(src, dst); ok {
			return handler, ok
		}
		return n.fallbackFlow(src, dst)
	})
	lc, err := srv.LocalClient()
	if err != nil {
		return err
	}
	n.srv, n.lc, n.params = srv, lc, p
	if err := boundSendBuffers(srv); err != nil {
		return err
	}
	if err := n.setRoutes(context.Background()); err != nil {
		return err
	}
	var watching context.Context
	watching, n.stopWatching = context.WithCancel(context.Background())
	go n.watch(watching)
	return nil
}

// newServer makes one; a device that it opens is closed when the server ends, or does not start.
func newServer(p startParams, st *store) (*tsnet.Server, error) {
	srv := &tsnet.Server{
		Dir: stateDir, Store: st, Hostname: p.Hostname, AuthKey: p.AuthKey, ClientSecret: p.ClientSecret, ControlURL: p.ControlURL,
		AdvertiseTags: p.AdvertiseTags, Ephemeral: p.Ephemeral, Port: p.Port,
		UserLogf: logger.Discard, // what it says comes as events
	}
	if p.Verbose {
		srv.Logf = log.Printf
	}
	if p.TUN != "" {
		dev, err := openTUN(p.TUN)
		if err != nil {
			return nil, err
		}
		srv.Tun = dev
	}
	return srv, nil
}

// authProblem tells whether tsnet could not make an auth key of an OAuth client secret, and why. There is no error value for it.
func authProblem(err error) (string, bool) {
	if err == nil {
		return "", false
	}
	_, words, ok := strings.Cut(err.Error(), "error resolving auth key: ")
	return "no auth key could be made with the OAuth client secret: " + words, ok
}

func (n *node) up(ctx context.Context) (any, error) {
	if _, err := n.srv.Up(ctx); err != nil {
		// tsnet gives no error value for "the control server refused": its own words carry this mark.
		if _, words, ok := strings.Cut(err.Error(), "backend: "); ok {
			if strings.HasPrefix(words, "invalid key: ") {
				words += ": an auth key is wrong, expired, or used up already; make a new one"
			}
			return nil, &rpcError{"TSNET_AUTH", words}
		}
		return nil, err
	}
	return n.status(ctx)
}

// logout gives the node key up, and asks for a new login as the start does. Logging out makes Tailscale forget its
// preferences, the control server among them: left at that it would call on Tailscale's own.
func (n *node) logout(ctx context.Context) error {
	n.loggingOut.Store(true)
	defer n.loggingOut.Store(false)
	if err := n.lc.Logout(ctx); err != nil {
		return err
	}
	prefs := ipn.NewPrefs()
	prefs.Hostname, prefs.ControlURL, prefs.AdvertiseTags = n.params.Hostname, n.params.ControlURL, n.params.AdvertiseTags
	prefs.WantRunning = true
	routes, err := n.routePrefs()
	if err != nil {
		return err
	}
	prefs.ApplyEdits(routes)
	if err := n.lc.Start(ctx, ipn.Options{UpdatePrefs: prefs}); err != nil {
		return err
	}
	return n.lc.StartLoginInteractive(ctx)
}

// awaitRunning waits until the node is in the tailnet, as up does.
func (n *node) awaitRunning(ctx context.Context) error {
	st, err := n.lc.StatusWithoutPeers(ctx)
	if err != nil {
		return err
	}
	if st.BackendState != ipn.Running.String() {
		_, err = n.up(ctx)
	}
	return err
}

func (n *node) listen(id uint64, addr string) (any, error) {
	ln, err := n.srv.Listen("tcp", addr)
	if err != nil {
		return nil, &rpcError{"TSNET_LISTEN", err.Error()}
	}
	n.mu.Lock()
	n.listeners[id] = ln
	n.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go n.handOver(c, streamMeta{Listener: id, Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()})
		}
	}()
	return map[string]string{"addr": ln.Addr().String()}, nil
}

// plan says where addr is in the tailnet. tsnet would take the machine's own network for all else, unencrypted: here that
// is an error.
func (n *node) plan(ctx context.Context, network, addr string) (netip.AddrPort, error) {
	if err := n.awaitRunning(ctx); err != nil {
		return netip.AddrPort{}, err
	}
	dialer := n.srv.Sys().Dialer.Get()
	to, _, err := dialer.UserDialPlan(ctx, network, addr)
	if err != nil {
		if to, ok := n.lookUp(ctx, network, addr); ok {
			return to, nil
		}
		return to, &rpcError{"TSNET_DIAL", err.Error()}
	}
	// Not the plan's own word for it: that takes the whole of Tailscale's IPv6 prefix for reachable, nodes or not.
	if !dialer.UseNetstackForIP(to.Addr()) {
		return to, &rpcError{"TSNET_NO_PEER", fmt.Sprintf("%s is no node of the tailnet, nor behind one", addr)}
	}
	return to, nil
}

// dial connects to a node of the tailnet, or to what is behind one.
func (n *node) dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := n.plan(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c, err := n.srv.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, &rpcError{"TSNET_DIAL", err.Error()}
	}
	return c, nil
}
