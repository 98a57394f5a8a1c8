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
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
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

	Event string `json:"event,omitempty"` // "state", "login", "message"
	Value string `json:"value,omitempty"`
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
}

type startParams struct {
	Hostname   string `json:"hostname"`
	AuthKey    string `json:"authKey"`
	ControlURL string `json:"controlURL"`
	Ephemeral  bool   `json:"ephemeral"`
	Port       uint16 `json:"port"`
	RootsPEM   string `json:"rootsPEM"`
	StateFile  string `json:"stateFile"` // its name outside, for messages
	Verbose    bool   `json:"verbose"`
}

type node struct {
	srv *tsnet.Server
	lc  *local.Client

	stopWatching context.CancelFunc

	mu        sync.Mutex
	cancels   map[uint64]context.CancelFunc
	listeners map[uint64]net.Listener
	open      map[net.Conn]struct{} // connections of the tailnet
}

func main() {
	log.SetFlags(0)
	installHostNetwork()
	fd := hostControl()
	if err := errnoOf(fd); err != nil {
		log.Fatalf("tsnet: control stream: %v", err)
	}
	n := &node{cancels: map[uint64]context.CancelFunc{}, listeners: map[uint64]net.Listener{}, open: map[net.Conn]struct{}{}}
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
	if req.Method == "cancel" {
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
			n.srv.Close()
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
	}
	if len(req.Params) > 0 {
		if err := json.Unmarshal(req.Params, &p); err != nil {
			return nil, err
		}
	}
	switch req.Method {
	case "up":
		return n.up(ctx)
	case "status":
		return n.status(ctx)
	case "listen":
		return nil, n.listen(req.ID, p.Port)
	case "unlisten":
		n.mu.Lock()
		ln := n.listeners[p.Listener]
		delete(n.listeners, p.Listener)
		n.mu.Unlock()
		if ln != nil {
			ln.Close()
		}
		return nil, nil
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
	case "networkChanged":
		n.srv.Sys().NetMon.Get().InjectEvent()
		return nil, nil
	}
	return nil, &rpcError{"TSNET_METHOD", "no such method: " + req.Method}
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
	st, err := openStore(p.StateFile)
	if err != nil {
		return &rpcError{"TSNET_STATE", err.Error()}
	}
	srv := &tsnet.Server{
		Dir: "/state", Store: st, Hostname: p.Hostname, AuthKey: p.AuthKey, ControlURL: p.ControlURL,
		Ephemeral: p.Ephemeral, Port: p.Port,
		UserLogf: logger.Discard, // what it says comes as events
	}
	if p.Verbose {
		srv.Logf = log.Printf
	}
	if err := srv.Start(); err != nil {
		if failed := st.failure(); failed != nil {
			return &rpcError{"TSNET_STATE", failed.Error()}
		}
		return err
	}
	lc, err := srv.LocalClient()
	if err != nil {
		return err
	}
	n.srv, n.lc = srv, lc
	var watching context.Context
	watching, n.stopWatching = context.WithCancel(context.Background())
	go n.watch(watching)
	return nil
}

// watch turns the backend's notices into events until the server is closed.
func (n *node) watch(ctx context.Context) {
	w, err := n.lc.WatchIPNBus(ctx, ipn.NotifyInitialState)
	if err != nil {
		log.Printf("tsnet: watch: %v", err)
		return
	}
	defer w.Close()
	for {
		m, err := w.Next()
		if err != nil {
			return
		}
		if m.State != nil {
			emit(event{Event: "state", Value: m.State.String()})
		}
		if m.BrowseToURL != nil && *m.BrowseToURL != "" {
			emit(event{Event: "login", Value: *m.BrowseToURL})
		}
		if m.ErrMessage != nil && *m.ErrMessage != "" {
			emit(event{Event: "message", Value: *m.ErrMessage})
		}
	}
}

func (n *node) up(ctx context.Context) (any, error) {
	if _, err := n.srv.Up(ctx); err != nil {
		// tsnet gives no error value for "the control server refused": its own words carry this mark.
		if _, words, ok := strings.Cut(err.Error(), "backend: "); ok {
			return nil, &rpcError{"TSNET_AUTH", words}
		}
		return nil, err
	}
	return n.status(ctx)
}

func (n *node) listen(id uint64, port uint16) error {
	ln, err := n.srv.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return &rpcError{"TSNET_LISTEN", err.Error()}
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
	return nil
}

// dial connects to a node of the tailnet, or to what is behind one. tsnet would take the machine's own network for all
// else, unencrypted: here that is an error.
func (n *node) dial(ctx context.Context, addr string) (net.Conn, error) {
	st, err := n.lc.StatusWithoutPeers(ctx)
	if err != nil {
		return nil, err
	}
	if st.BackendState != ipn.Running.String() {
		if _, err := n.up(ctx); err != nil {
			return nil, err
		}
	}
	dialer := n.srv.Sys().Dialer.Get()
	to, _, err := dialer.UserDialPlan(ctx, "tcp", addr)
	if err != nil {
		return nil, &rpcError{"TSNET_DIAL", err.Error()}
	}
	// Not the plan's own word for it: that takes the whole of Tailscale's IPv6 prefix for reachable, nodes or not.
	if !dialer.UseNetstackForIP(to.Addr()) {
		return nil, &rpcError{"TSNET_NO_PEER", fmt.Sprintf("%s is no node of the tailnet, nor behind one", addr)}
	}
	c, err := n.srv.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, &rpcError{"TSNET_DIAL", err.Error()}
	}
	return c, nil
}

// abortAll resets every connection and lets the resets go out: netstack's own Close would lose them.
func (n *node) abortAll() {
	n.mu.Lock()
	open := slices.Collect(maps.Keys(n.open))
	n.mu.Unlock()
	if len(open) == 0 {
		return
	}
	for _, c := range open {
		abort(c)
	}
	time.Sleep(50 * time.Millisecond)
}

// handOver joins a tailnet connection to a new stream of the host's.
func (n *node) handOver(c net.Conn, meta streamMeta) error {
	b, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	fd := hostStreamOpen(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
	if err := errnoOf(fd); err != nil {
		c.Close()
		return err
	}
	s := &streamConn{File: newFile(fd, "stream"), fd: fd}
	// An error of either side ends both halves, and both ends see a reset: a clean end would say that all bytes arrived.
	fail := sync.OnceFunc(func() {
		hostStreamReset(fd)
		abort(c)
	})
	n.mu.Lock()
	n.open[c] = struct{}{}
	n.mu.Unlock()
	go func() {
		var done sync.WaitGroup
		done.Go(func() {
			if err := copyHalf(s, c); err != nil {
				fail()
			}
		})
		done.Go(func() {
			if err := copyHalf(c, s); err != nil {
				fail()
			}
		})
		done.Wait()
		s.Close()
		c.Close()
		n.mu.Lock()
		delete(n.open, c)
		n.mu.Unlock()
	}()
	return nil
}

// abort closes a connection of netstack's with a reset. gonet.TCPConn has no SetLinger, and its Close ends cleanly where
// nothing lies unread: the endpoint behind it is what can abort.
func abort(c net.Conn) {
	if t, ok := c.(*gonet.TCPConn); ok {
		ep := (*tcpip.Endpoint)(unsafe.Pointer(reflect.ValueOf(t).Elem().FieldByName("ep").UnsafeAddr()))
		(*ep).Abort()
	}
	c.Close()
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyHalf copies until src ends, then tells dst so: a half-close is passed on. An error is one of either side.
func copyHalf(dst, src net.Conn) error {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			if cw, ok := dst.(interface{ CloseWrite() error }); ok {
				return cw.CloseWrite()
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

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
		s.KeyExpiry = p.KeyExpiry.UTC().Format("2006-01-02T15:04:05Z")
	}
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
	}{
		BackendState: st.BackendState, AuthURL: st.AuthURL, TailscaleIPs: addrStrings(st.TailscaleIPs),
		Peers: []nodeStatus{}, Health: append([]string{}, st.Health...), CertDomains: append([]string{}, st.CertDomains...),
	}
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
