//go:build wasip1

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

// The host's functions. A result below zero is a WASI error number, negated. Addresses cross as 16 bytes
// (IPv4 as IPv4-mapped IPv6, RFC 4291 section 2.5.5.2) and a port. worker-side twin: ../host/imports.ts.

//go:wasmimport tsnet_host udp_open
func hostUDPOpen(addr unsafe.Pointer, family, port int32) int32

// hostUDPSend sends buf as datagrams of segment bytes each, the last of which may be shorter; segment 0: all as one.
//
//go:wasmimport tsnet_host udp_send
func hostUDPSend(fd int32, buf unsafe.Pointer, n int32, addr unsafe.Pointer, port, segment int32) int32

// hostUDPRecv fills buf with a datagram, or with some of one sender and one size, the last of which may be shorter, and src
// with the sender: 16 bytes of address, the port and the size of each (0: it is one), little-endian uint16.
//
//go:wasmimport tsnet_host udp_recv
func hostUDPRecv(fd int32, buf unsafe.Pointer, n int32, src unsafe.Pointer) int32

// hostTCPOpen starts a connection. The descriptor becomes writable when it is made or has failed: hostSockError tells which.
//
//go:wasmimport tsnet_host tcp_open
func hostTCPOpen(addr unsafe.Pointer, port int32) int32

//go:wasmimport tsnet_host sock_error
func hostSockError(fd int32) int32

// hostSockName fills out with an address and port as hostUDPRecv does; peer chooses the remote end.
//
//go:wasmimport tsnet_host sock_name
func hostSockName(fd, peer int32, out unsafe.Pointer) int32

// hostStreamOpen makes a stream whose other end the host hands to its user. meta is JSON (streamMeta).
//
//go:wasmimport tsnet_host stream_open
func hostStreamOpen(meta unsafe.Pointer, n int32) int32

// hostStreamReset ends a stream so that the other end sees an error, not a clean end.
//
//go:wasmimport tsnet_host stream_reset
func hostStreamReset(fd int32) int32

// hostQuery copies what the host knows (see ../host/imports.ts) into buf and returns its length; when that is more than n, nothing was copied.
//
//go:wasmimport tsnet_host query
func hostQuery(what int32, buf unsafe.Pointer, n int32) int32

// hostStateWrite takes a copy of the whole of the state. When it is durable, or cannot be made so, the host says so by a
// request "saved" with this number: a disk may take seconds, and the packets go on meanwhile.
//
//go:wasmimport tsnet_host state_write
func hostStateWrite(number int32, buf unsafe.Pointer, n int32)

// hostEmit hands the host one JSON message (event).
//
//go:wasmimport tsnet_host emit
func hostEmit(buf unsafe.Pointer, n int32)

// hostControl opens the stream on which requests arrive: for each, a little-endian uint32 length and that much JSON (request).
//
//go:wasmimport tsnet_host control
func hostControl() int32

// hostTUNOpen opens the interface of that name, and makes it where there is none and that is allowed.
//
//go:wasmimport tsnet_host tun_open
func hostTUNOpen(name unsafe.Pointer, n int32) int32

// hostTUNRead fills buf with a packet of the interface's behind its virtio_net_hdr (package vnet).
//
//go:wasmimport tsnet_host tun_read
func hostTUNRead(fd int32, buf unsafe.Pointer, n int32) int32

// hostTUNWrite gives the interface a packet behind its virtio_net_hdr.
//
//go:wasmimport tsnet_host tun_write
func hostTUNWrite(fd int32, buf unsafe.Pointer, n int32) int32

// What hostQuery can be asked.
const (
	queryInterfaces  = 0 // JSON: []hostInterface
	queryNameservers = 1 // JSON: []string, ip:port
	queryState       = 2 // the bytes last given to hostStateWrite
	queryMachine     = 3 // JSON: hostMachine
)

func errnoOf(res int32) error {
	if res < 0 {
		return syscall.Errno(-res)
	}
	return nil
}

func query(what int32) ([]byte, error) {
	buf := make([]byte, 16<<10)
	for {
		n := hostQuery(what, unsafe.Pointer(unsafe.SliceData(buf)), int32(len(buf)))
		if err := errnoOf(n); err != nil {
			return nil, fmt.Errorf("host query %d: %w", what, err)
		}
		if int(n) <= len(buf) {
			return buf[:n], nil
		}
		buf = make([]byte, n)
	}
}

func queryJSON[T any](what int32) (v T, err error) {
	b, err := query(what)
	if err != nil {
		return v, err
	}
	err = json.Unmarshal(b, &v)
	return v, err
}

func emit(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only types of this package come here
	}
	hostEmit(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
}

// sockName is the wire form of an address and port.
type sockName [18]byte

func (s *sockName) addrPort() netip.AddrPort {
	a := netip.AddrFrom16([16]byte(s[:16])).Unmap()
	return netip.AddrPortFrom(a, uint16(s[16])|uint16(s[17])<<8)
}

func nameOf(fd int32, peer bool) netip.AddrPort {
	var out sockName
	p := int32(0)
	if peer {
		p = 1
	}
	if hostSockName(fd, p, unsafe.Pointer(&out)) < 0 {
		return netip.AddrPort{}
	}
	return out.addrPort()
}

// newFile wraps a descriptor of the host. The host says of it that it is a non-blocking socket, so Go's poller takes it.
func newFile(fd int32, name string) *os.File { return os.NewFile(uintptr(fd), name) }
