package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"

	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// proxyNode is what one would write in Go instead of the gateway, for bench/tailnet.ts to measure
// beside it: the standard library's ReverseProxy to a unix socket, behind TLS on a natively
// compiled tsnet listener. When it serves it prints its name as one JSON line.
func proxyNode(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("lab proxy-node", flag.ContinueOnError)
	dir := fs.String("dir", "", "directory of the node's state; made when absent")
	control := fs.String("control", "", "URL of the control server")
	keyFile := fs.String("authkey-file", "", "file with the auth key")
	hostname := fs.String("hostname", "", "name to ask for")
	origin := fs.String("origin", "", "unix socket of the origin")
	chain := fs.String("chain", "", "PEM file of the certificate chain")
	key := fs.String("key", "", "PEM file of its key")
	if err := fs.Parse(args); err != nil {
		return err
	}
	authKey, err := os.ReadFile(*keyFile)
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(*chain, *key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	srv := &tsnet.Server{
		Dir: *dir, Hostname: *hostname, ControlURL: *control, AuthKey: strings.TrimSpace(string(authKey)), Logf: logger.Discard, UserLogf: logger.Discard,
	}
	defer srv.Close()
	st, err := srv.Up(ctx)
	if err != nil {
		return err
	}
	ln, err := srv.Listen("tcp", ":443")
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "origin"
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", *origin)
			},
			MaxIdleConnsPerHost: 1024,
			DisableCompression:  true,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	web := &http.Server{Handler: proxy, ErrorLog: log.New(io.Discard, "", 0)}
	go web.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
	defer web.Close()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"name": strings.TrimSuffix(st.Self.DNSName, ".")}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
