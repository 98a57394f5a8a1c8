package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// Ports of the program that the benchmark measures: this file's loadNode natively,
// ../../bench/node.ts on the bindings.
const (
	echoPort   = 7  // sends back what it gets
	sinkPort   = 9  // reads to the end, then answers with the number of bytes (8, big-endian)
	sourcePort = 19 // gets a number of milliseconds (4 bytes, big-endian), sends for that long, then ends
)

// loadNode is the natively compiled twin of bench/node.ts. When it is on the tailnet it prints its
// addresses as one JSON line.
func loadNode(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("lab load-node", flag.ContinueOnError)
	dir := fs.String("dir", "", "directory of the node's state; made when absent")
	control := fs.String("control", "", "URL of the control server")
	keyFile := fs.String("authkey-file", "", "file with the auth key")
	hostname := fs.String("hostname", "", "name to ask for")
	if err := fs.Parse(args); err != nil {
		return err
	}
	key, err := os.ReadFile(*keyFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	srv := &tsnet.Server{
		Dir: *dir, Hostname: *hostname, ControlURL: *control, AuthKey: strings.TrimSpace(string(key)), UserLogf: logger.Discard,
	}
	defer srv.Close()
	st, err := srv.Up(ctx)
	if err != nil {
		return err
	}
	for port, serve := range map[int]func(net.Conn) error{
		echoPort: func(c net.Conn) error {
			_, err := io.Copy(c, c)
			return err
		},
		sinkPort: func(c net.Conn) error {
			n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 64<<10))
			if err != nil {
				return err
			}
			return binary.Write(c, binary.BigEndian, n)
		},
		sourcePort: func(c net.Conn) error {
			var ms uint32
			if err := binary.Read(c, binary.BigEndian, &ms); err != nil {
				return err
			}
			b := make([]byte, 64<<10)
			for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
				if _, err := c.Write(b); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		ln, err := srv.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					serve(c)
				}()
			}
		}()
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"ips": st.TailscaleIPs}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// loadAnswer is what a load came to.
type loadAnswer struct {
	Bytes int64   `json:"bytes"` // of all streams together
	MS    float64 `json:"ms"`    // from the first byte asked for to the last one known to have arrived
	Trips []int64 `json:"trips"` // ns of each round trip, sorted
}

// load puts a load on the node at an address: GET /load?ip=&kind=&streams=&ms=
//
//	down   reads from the source on that many streams for that long
//	up     writes to the sink likewise, and counts what the sink says it got
//	rtt    one byte to the echo and back, again and again, on one stream
//	many   opens that many streams to the echo, one after the other in 32 rows; with all open sends 1 KiB on each and reads it back
func (c *tailnetClient) load(r *http.Request) (any, error) {
	ip, err := netip.ParseAddr(r.FormValue("ip"))
	if err != nil {
		return nil, badRequest{err}
	}
	streams, err := strconv.Atoi(cmpOr(r.FormValue("streams"), "1"))
	if err != nil || streams < 1 {
		return nil, badRequest{fmt.Errorf("streams %q is no number from 1 on", r.FormValue("streams"))}
	}
	ms, err := strconv.Atoi(cmpOr(r.FormValue("ms"), "3000"))
	if err != nil || ms < 1 {
		return nil, badRequest{fmt.Errorf("ms %q is no number from 1 on", r.FormValue("ms"))}
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Minute)
	defer cancel()
	dial := func(port uint16) (net.Conn, error) {
		conn, err := c.srv.Dial(ctx, "tcp", netip.AddrPortFrom(ip, port).String())
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}
	period := time.Duration(ms) * time.Millisecond
	switch r.FormValue("kind") {
	case "down":
		return inStreams(streams, func() (int64, error) {
			conn, err := dial(sourcePort)
			if err != nil {
				return 0, err
			}
			defer conn.Close()
			if err := binary.Write(conn, binary.BigEndian, uint32(ms)); err != nil {
				return 0, err
			}
			return io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, make([]byte, 64<<10))
		})
	case "up":
		return inStreams(streams, func() (n int64, err error) {
			conn, err := dial(sinkPort)
			if err != nil {
				return 0, err
			}
			defer conn.Close()
			b := make([]byte, 64<<10)
			for end := time.Now().Add(period); time.Now().Before(end); {
				if _, err := conn.Write(b); err != nil {
					return 0, err
				}
			}
			if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				return 0, err
			}
			return n, binary.Read(conn, binary.BigEndian, &n)
		})
	case "rtt":
		conn, err := dial(echoPort)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		var out loadAnswer
		b := []byte{1}
		for end := time.Now().Add(period); time.Now().Before(end); {
			start := time.Now()
			if _, err := conn.Write(b); err != nil {
				return nil, err
			}
			if _, err := io.ReadFull(conn, b); err != nil {
				return nil, err
			}
			out.Trips = append(out.Trips, int64(time.Since(start)))
		}
		slices.Sort(out.Trips)
		return out, nil
	case "many":
		return c.loadMany(streams, func() (net.Conn, error) { return dial(echoPort) })
	}
	return nil, badRequest{errors.New("kind is none of down, up, rtt, many")}
}

// inStreams runs f that many times at once.
func inStreams(n int, f func() (int64, error)) (*loadAnswer, error) {
	var out loadAnswer
	var mu sync.Mutex
	var failed error
	var done sync.WaitGroup
	start := time.Now()
	for range n {
		done.Go(func() {
			bytes, err := f()
			mu.Lock()
			defer mu.Unlock()
			out.Bytes += bytes
			failed = errors.Join(failed, err)
		})
	}
	done.Wait()
	out.MS = float64(time.Since(start).Microseconds()) / 1000
	return &out, failed
}

func (c *tailnetClient) loadMany(n int, dial func() (net.Conn, error)) (*loadAnswer, error) {
	const rows = 32
	conns := make([]net.Conn, n)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	row := 0
	var mu sync.Mutex
	each := func(f func(i int) error) (*loadAnswer, error) {
		row = 0
		return inStreams(rows, func() (int64, error) {
			for {
				mu.Lock()
				i := row
				row++
				mu.Unlock()
				if i >= n {
					return 0, nil
				}
				if err := f(i); err != nil {
					return 0, fmt.Errorf("stream %d of %d: %w", i+1, n, err)
				}
			}
		})
	}
	opened, err := each(func(i int) (err error) {
		conns[i], err = dial()
		return err
	})
	if err != nil {
		return nil, err
	}
	echoed, err := each(func(i int) error {
		b := make([]byte, 1024)
		if _, err := conns[i].Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(conns[i], b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &loadAnswer{Bytes: int64(n) * 1024, MS: opened.MS + echoed.MS}, nil
}
