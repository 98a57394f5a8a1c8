//go:build wasip1

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"unsafe"

	"tailscale.com/ipn"
)

// store is an ipn.StateStore kept whole in memory and written whole by the host, in the format of Tailscale's
// ipn/store.FileStore: one JSON object, base64 values. The host makes it durable: Go on wasip1 could not fsync a directory.
type store struct {
	file string // its name outside, for messages

	mu     sync.Mutex
	m      map[ipn.StateKey][]byte
	failed error // of the last write
}

func openStore(file string) (*store, error) {
	b, err := query(queryState)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read (%w): it must be a file that this process may read and write", file, err)
	}
	s := &store{file: file, m: map[ipn.StateKey][]byte{}}
	// An empty file holds no identity that could be lost: as Tailscale's own store, begin anew.
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s.m); err != nil {
		return nil, fmt.Errorf("%s is damaged (%v): restore it from a backup, or move it away to log in as a new node", file, err)
	}
	return s, nil
}

func (s *store) ReadState(id ipn.StateKey) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.m[id]
	if !ok {
		return nil, ipn.ErrStateNotExist
	}
	return b, nil
}

func (s *store) WriteState(id ipn.StateKey, bs []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(s.m)
	if bs == nil {
		delete(next, id)
	} else {
		next[id] = append([]byte{}, bs...)
	}
	b, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := errnoOf(hostStateWrite(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))); err != nil {
		s.failed = fmt.Errorf("%s cannot be written: %w", s.file, err)
		// Tailscale goes on without: whoever runs it must know that the node's identity would not survive a restart.
		emit(event{Event: "message", Value: s.failed.Error()})
		return s.failed
	}
	s.m, s.failed = next, nil
	return nil
}

// failure is why the last write failed, or nil.
func (s *store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}
