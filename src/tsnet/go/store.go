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
	mu sync.Mutex
	m  map[ipn.StateKey][]byte
}

func openStore() (*store, error) {
	b, err := query(queryState)
	if err != nil {
		return nil, err
	}
	s := &store{m: map[ipn.StateKey][]byte{}}
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s.m); err != nil {
		return nil, fmt.Errorf("the state file is not readable (%v); restore it from a backup, or move it away to log in anew", err)
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
		return fmt.Errorf("writing state: %w", err)
	}
	s.m = next
	return nil
}
