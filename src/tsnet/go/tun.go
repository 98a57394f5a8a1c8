//go:build wasip1

package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"gatehouse/tsnet/vnet"
	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/tun"
)

// tunName is the interface that the kernel has the tailnet's packets by; empty: there is none. Its addresses are
// no way to this machine.
var tunName string

// tunMTU is what WireGuard is told: Tailscale's own for its interface (tstun.DefaultTUNMTU). Larger packets are dropped.
const tunMTU = 1280

// tunDevice is a tun.Device over an interface of Linux's that the host has opened with IFF_VNET_HDR: a read or write is
// one packet, or many segments of a flow (package vnet).
type tunDevice struct {
	f      *os.File
	rc     syscall.RawConn
	fd     int32
	events chan tun.Event
	closed atomic.Bool

	rmu   sync.Mutex
	split vnet.Splitter
	rbuf  [vnet.HeaderLen + vnet.MaxPacket]byte

	wmu    sync.Mutex
	joiner vnet.Joiner
}

func openTUN(name string) (*tunDevice, error) {
	b := []byte(name)
	fd := hostTUNOpen(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
	if err := errnoOf(fd); err != nil {
		return nil, &rpcError{"TSNET_TUN", fmt.Sprintf("the device %s cannot be opened: %s", name, whyNoTUN(err))}
	}
	f := newFile(fd, "tun "+name)
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	tunName = name
	t := &tunDevice{f: f, rc: rc, fd: fd, events: make(chan tun.Event, 1)}
	t.joiner.Write = t.writeOne
	t.events <- tun.EventUp
	return t, nil
}

// whyNoTUN names cause and cure of what open(2), TUNSETIFF and TUNSETOFFLOAD say.
func whyNoTUN(err error) string {
	switch err {
	case syscall.EPERM, syscall.EACCES:
		return "this process may not: make it beforehand for its user (ip tuntap add dev NAME mode tun user USER), " +
			"and let that user read and write /dev/net/tun, or give the process CAP_NET_ADMIN"
	case syscall.EBUSY:
		return "another process has it"
	case syscall.ENOENT, syscall.ENODEV, syscall.ENXIO:
		return "there is no /dev/net/tun here (modprobe tun; in a container, give it the device)"
	case syscall.EINVAL:
		return "an interface of that name is no tun device, or one with several queues (multi_queue)"
	case syscall.ENOSYS:
		return "it needs network \"ffi\": Linux on x86-64 or arm64, and a Node.js whose node:ffi may be used"
	}
	return err.Error()
}

// gone ends the module: without its device the node would be in the tailnet, and deaf.
func (t *tunDevice) gone(err error) error {
	if t.closed.Load() {
		return os.ErrClosed
	}
	log.Fatalf("tsnet: the device %s is gone (%v)", tunName, err)
	return err
}

// readOne reads a packet, to be split. EAGAIN where there is none and wait is false.
func (t *tunDevice) readOne(wait bool) error {
	var n int32
	try := func(uintptr) bool {
		n = hostTUNRead(t.fd, unsafe.Pointer(&t.rbuf), int32(len(t.rbuf)))
		return n != -int32(syscall.EAGAIN)
	}
	if !try(0) {
		if !wait {
			return syscall.EAGAIN
		}
		if err := t.rc.Read(try); err != nil {
			return t.gone(err)
		}
	}
	if err := errnoOf(n); err != nil {
		return t.gone(err)
	}
	// What is not valid is not the end of all: it is dropped, with nothing to split.
	_ = t.split.Add(t.rbuf[:n])
	return nil
}

// Read waits for the first packet, and takes what else is there as far as there is room.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	t.rmu.Lock()
	defer t.rmu.Unlock()
	for n < len(bufs) {
		if !t.split.Pending() {
			if err := t.readOne(n == 0); err != nil {
				if n > 0 {
					return n, nil
				}
				return 0, err
			}
			continue
		}
		// A packet larger than WireGuard's buffers (the interface has a larger MTU) is dropped.
		if size, err := t.split.Next(bufs[n][offset:]); err == nil {
			sizes[n] = size
			n++
		}
	}
	return n, nil
}

// writeOne writes a packet with its virtio header.
func (t *tunDevice) writeOne(b []byte) error {
	var n int32
	try := func(uintptr) bool {
		n = hostTUNWrite(t.fd, unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
		return n != -int32(syscall.EAGAIN)
	}
	if !try(0) {
		if err := t.rc.Write(try); err != nil {
			return os.ErrClosed
		}
	}
	return errnoOf(n)
}

var errOffset = errors.New("tun: no room for a header before the packet")

func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	if offset < vnet.HeaderLen {
		return 0, errOffset
	}
	t.wmu.Lock()
	defer t.wmu.Unlock()
	var first error
	for _, b := range bufs {
		if err := t.joiner.Add(b, offset); err != nil && first == nil {
			first = err
		}
	}
	if err := t.joiner.Flush(); err != nil && first == nil {
		first = err
	}
	return len(bufs), first
}

func (t *tunDevice) File() *os.File           { return nil }
func (t *tunDevice) MTU() (int, error)        { return tunMTU, nil }
func (t *tunDevice) Name() (string, error)    { return tunName, nil }
func (t *tunDevice) Events() <-chan tun.Event { return t.events }
func (t *tunDevice) BatchSize() int           { return conn.IdealBatchSize }

func (t *tunDevice) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	err := t.f.Close()
	close(t.events)
	return err
}

var _ tun.Device = (*tunDevice)(nil)
