package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// queueFrames is how many frames are under way in one direction at most, as a router has only so
// much memory: at 1500 bytes and 66 ms there and back enough for 2.4 Gbit/s.
const queueFrames = 8192

// queueTime is how much a line with a rate holds back at most, as routers at home do.
const queueTime = 50 * time.Millisecond

// wire is an Ethernet cable between two network namespaces, of a length and a quality: what
// tc-netem(8) does, for kernels without it. Each end is a TAP device that it makes. When both are
// there it prints a line; they go when it ends.
func wire(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("lab wire", flag.ContinueOnError)
	var ends [2]struct{ ns, name *string }
	for i, side := range []string{"near", "far"} {
		ends[i].ns = fs.String(side+"-ns", "", "network namespace of the "+side+" end, by name")
		ends[i].name = fs.String(side, "", "name of the "+side+" end's device")
	}
	delay := fs.Duration("delay", 0, "of each frame, each way")
	out := fs.Float64("loss-out", 0, "percent of the frames from near to far that are lost")
	rate := fs.Float64("rate", 0, "Mbit/s, each way; 0: as fast as it goes")
	in := fs.Float64("loss-in", 0, "percent of the frames from far to near that are lost")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var taps [2]*os.File
	for i, end := range ends {
		tap, err := openTAP(*end.ns, *end.name)
		if err != nil {
			return fmt.Errorf("device %s in %s: %w", *end.name, *end.ns, err)
		}
		defer tap.Close()
		taps[i] = tap
	}
	failed := make(chan error, 2)
	for i, loss := range []float64{*out, *in} {
		go func() { failed <- carry(taps[i], taps[1-i], *delay, *rate*1e6/8, loss/100) }()
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// openTAP makes a TAP device in a namespace.
func openTAP(ns, name string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		// The thread stays in the namespace, and ends with this goroutine because it is not unlocked.
		runtime.LockOSThread()
		f, err := func() (*os.File, error) {
			at, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			defer unix.Close(at)
			if err := unix.Setns(at, unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			req, err := unix.NewIfreq(name)
			if err != nil {
				unix.Close(fd)
				return nil, err
			}
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
				unix.Close(fd)
				return nil, err
			}
			return os.NewFile(uintptr(fd), name), nil
		}()
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

// carry takes frames from one end to the other until an end is gone: rate is in bytes a second (0:
// any), loss a share.
func carry(from, to *os.File, delay time.Duration, rate, loss float64) error {
	type frame struct {
		due time.Time
		b   []byte
	}
	queue := make(chan frame, queueFrames)
	defer close(queue)
	go func() {
		for f := range queue {
			if wait := time.Until(f.due); wait > 0 {
				time.Sleep(wait)
			}
			to.Write(f.b) // an end that is down takes none: as a cable, it does not care
		}
	}()
	var sent time.Time // when the last frame is on the line whole
	for {
		b := make([]byte, 2048)
		n, err := from.Read(b)
		switch {
		case errors.Is(err, unix.EIO): // the device is down, or not up yet
			time.Sleep(10 * time.Millisecond)
			continue
		case err != nil:
			return err
		case loss > 0 && rand.Float64() < loss:
			continue
		}
		now := time.Now()
		if sent.Before(now) {
			sent = now
		}
		if rate > 0 {
			if sent.Sub(now) > queueTime {
				continue
			}
			sent = sent.Add(time.Duration(float64(n) / rate * float64(time.Second)))
		}
		select {
		case queue <- frame{sent.Add(delay), b[:n]}:
		default: // full
		}
	}
}
