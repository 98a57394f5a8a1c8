// Command lab is a tailnet without the internet, for tests and for `make run`.
//
//	lab serve  --dir DIR [--suffix tail0a1b2.ts.net]
//	lab client --dir STATE --control URL --hostname NAME --socket SOCK [--authkey-file FILE] [--browser SOCK2 --origin URL --roots PEM]
//	lab load-node --dir STATE --control URL --hostname NAME --authkey-file FILE
//	lab wire --near-ns NAME --near DEVICE --far-ns NAME --far DEVICE [--delay 33ms] [--loss-out 1] [--loss-in 1]
//	lab proxy-node --dir STATE --control URL --hostname NAME --authkey-file FILE --origin SOCKET --chain PEM --key PEM
//
// serve is everything a tailnet needs from outside: control server, DERP, STUN, DNS, NTP and an
// ACME authority that truly validates dns-01. client is a native tailnet client that a test drives
// over a unix socket. load-node is what bench/tsnet.ts measures natively. wire is a cable between
// two namespaces that delays and loses.
//
// Both end on SIGTERM and SIGINT, and when a pipe they have as standard input closes: whoever
// started them holds the other end, so they cannot outlive it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	_ "unsafe" // for go:linkname

	"tailscale.com/envknob"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	quiet()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	endWithStdin(cancel)

	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(ctx, os.Args[2:])
	case "client":
		err = client(ctx, os.Args[2:])
	case "load-node":
		err = loadNode(ctx, os.Args[2:])
	case "wire":
		err = wire(ctx, os.Args[2:])
	case "proxy-node":
		err = proxyNode(ctx, os.Args[2:])
	default:
		usage()
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil && ctx.Err() == nil:
		fmt.Fprintf(os.Stderr, "lab %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: lab serve --dir DIR [--suffix NAME.ts.net]\n       lab client --dir STATE --control URL --hostname NAME --socket SOCK [...]\n       lab load-node --dir STATE --control URL --hostname NAME --authkey-file FILE\n       lab wire --near-ns NAME --near DEVICE --far-ns NAME --far DEVICE [...]\n       lab proxy-node --dir STATE --control URL --hostname NAME --authkey-file FILE --origin SOCKET --chain PEM --key PEM")
	os.Exit(2)
}

// quiet switches off what Tailscale's code does towards the internet by itself: log upload, and
// port mapping requests to the router. Captive portal detection and UPnP are switched off by node
// attributes, which the control server sends (control.go). Bootstrap DNS (asking Tailscale's own
// DERP servers, which are compiled in, for a control server's address when it cannot be resolved or
// reached) has no switch: it is left without servers to ask.
func quiet() {
	envknob.Setenv("TS_NO_LOGS_NO_SUPPORT", "true")
	envknob.Setenv("TS_DISABLE_PORTMAPPER", "true")
	envknob.Setenv("TS_DISABLE_UPNP", "true")
	bootstrapServers = []byte(`{"Regions":{}}`)
}

//go:linkname bootstrapServers tailscale.com/net/dnsfallback.staticDERPMapJSON
var bootstrapServers []byte

// endWithStdin calls end when standard input is a pipe or socket and its other end closes.
func endWithStdin(end func()) {
	st, err := os.Stdin.Stat()
	if err != nil || st.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
}
