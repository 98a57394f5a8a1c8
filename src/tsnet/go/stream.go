//go:build wasip1

package main

import (
	"encoding/json"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
	"unsafe"
)

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

// openStream makes a new stream of the host's.
func openStream(meta streamMeta) (*streamConn, error) {
	b, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	fd := hostStreamOpen(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
	if err := errnoOf(fd); err != nil {
		return nil, err
	}
	return &streamConn{File: newFile(fd, "stream"), fd: fd}, nil
}

// handOver joins a tailnet connection to a new stream of the host's.
func (n *node) handOver(c net.Conn, meta streamMeta) error {
	_, err := n.handOverUntil(c, meta)
	return err
}

// handOverUntil also tells when both have ended.
func (n *node) handOverUntil(c net.Conn, meta streamMeta) (<-chan struct{}, error) {
	s, err := openStream(meta)
	if err != nil {
		c.Close()
		return nil, err
	}
	return n.join(c, s, func() {
		hostStreamReset(s.fd)
		abort(c)
	}), nil
}

// join copies between a tailnet connection and another until both have ended, closes them and then the channel. An error of either side
// ends both halves by reset, at which both ends see one: a clean end would say that all bytes arrived.
func (n *node) join(c, s net.Conn, reset func()) <-chan struct{} {
	ended := make(chan struct{})
	keepAlive(c)
	fail := sync.OnceFunc(reset)
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
		close(ended)
	}()
	return ended
}

// abort closes a connection of netstack's with a reset. gonet.TCPConn has no SetLinger, and its Close ends cleanly where
// nothing lies unread: the endpoint behind it is what can abort.
func abort(c net.Conn) {
	if ep := endpointOf(c); ep != nil {
		ep.Abort()
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
