//go:build wasip1

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"unsafe"

	"tailscale.com/ipn"
)

// store is an ipn.StateStore kept whole in memory and written whole by the host, in the format of Tailscale's
// ipn/store.FileStore: one JSON object, base64 values. The host makes it durable: Go on wasip1 could not fsync a directory,
// and all its goroutines would wait for one that does.
type store struct {
	name string // outside, for messages
	save func([]byte) error

	mu     sync.Mutex
	m      map[ipn.StateKey][]byte
	failed error // of the last write
}

func (n *node) openStore(p startParams) (*store, error) {
	s := &store{name: p.StateFile, m: map[ipn.StateKey][]byte{}}
	b := []byte(p.State)
	if p.OwnStore {
		s.save = func(b []byte) error {
			return n.await(func(number uint64) { emit(event{Event: "save", Value: saveRequest{number, string(b)}}) })
		}
	} else {
		var err error
		if b, err = query(queryState); err != nil {
			return nil, fmt.Errorf("%s cannot be read (%w): it must be a file that this process may read and write", s.name, err)
		}
		s.save = func(b []byte) error {
			return n.await(func(number uint64) {
				hostStateWrite(int32(number), unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
			})
		}
	}
	// An empty file holds no identity that could be lost: as Tailscale's own store, begin anew.
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s.m); err != nil {
		return nil, fmt.Errorf("%s is damaged (%v): restore it from a backup, or move it away to log in as a new node", s.name, err)
	}
	return s, nil
}

// saveRequest asks the host to give the state to the caller's store; "saved" answers, with the same number.
type saveRequest struct {
	Number uint64 `json:"number"`
	State  string `json:"state"`
}

// await has the state written under a number, and waits for the answer "saved" to it.
func (n *node) await(write func(number uint64)) error {
	n.mu.Lock()
	number := uint64(1)
	for n.saves[number] != nil {
		number++
	}
	done := make(chan error, 1)
	n.saves[number] = done
	n.mu.Unlock()
	write(number)
	return <-done
}

// saved is the host's answer to a saveRequest and to hostStateWrite.
func (n *node) saved(req request) {
	var p struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(req.Params, &p); err != nil {
		p.Error = err.Error()
	}
	n.mu.Lock()
	done := n.saves[req.ID]
	delete(n.saves, req.ID)
	n.mu.Unlock()
	switch {
	case done == nil:
	case p.Error != "":
		done <- errors.New(p.Error)
	default:
		done <- nil
	}
}

// known tells whether the store holds a node that has been logged in.
func (s *store) known() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m[ipn.CurrentProfileStateKey]) > 0
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
	if err := s.save(b); err != nil {
		s.failed = fmt.Errorf("%s cannot be written: %w", s.name, err)
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
