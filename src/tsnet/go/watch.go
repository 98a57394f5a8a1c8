//go:build wasip1

package main

import (
	"cmp"
	"context"
	"log"
	"maps"
	"slices"
	"time"

	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// warning is one complaint of Tailscale's health tracker.
type warning struct {
	Code     string `json:"code"`
	Severity string `json:"severity"` // "low", "medium", "high"
	Title    string `json:"title"`
	Text     string `json:"text"`
}

func warningsOf(s *health.State) []warning {
	out := []warning{}
	for _, w := range slices.SortedFunc(maps.Values(s.Warnings), func(a, b health.UnhealthyState) int {
		return cmp.Compare(a.WarnableCode, b.WarnableCode)
	}) {
		out = append(out, warning{string(w.WarnableCode), string(w.Severity), w.Title, w.Text})
	}
	return out
}

// keyExpiry is when the node's key expires, and whether the control server takes it for expired already.
type keyExpiry struct {
	At      string `json:"at,omitempty"` // RFC 3339; empty: never
	Expired bool   `json:"expired"`
}

func expiryOf(self *tailcfg.Node) keyExpiry {
	return keyExpiry{rfc3339(self.KeyExpiry), self.Expired || !self.KeyExpiry.IsZero() && self.KeyExpiry.Before(time.Now())}
}

func rfc3339(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// watch turns the backend's notices into events until the server is closed.
func (n *node) watch(ctx context.Context) {
	w, err := n.lc.WatchIPNBus(ctx, ipn.NotifyInitialState|ipn.NotifyInitialHealthState|ipn.NotifyInitialNetMap|ipn.NotifyNoNetMap)
	if err != nil {
		log.Printf("tsnet: watch: %v", err)
		return
	}
	defer w.Close()
	var state ipn.State
	var expiry *keyExpiry
	var joined bool  // has been in the tailnet since the start
	var keyless bool // the auth key has been found to be of no more use
	for {
		m, err := w.Next()
		if err != nil {
			return
		}
		if m.State != nil && *m.State != state {
			state = *m.State
			emit(event{Event: "state", Value: state.String()})
			joined = joined || state == ipn.Running
			// tsnet logs in at its start alone. A key that expires later, or a node that is logged out at the control server,
			// would be stranded with nothing to tell a person. An auth key that is still good renews the login by itself.
			if state == ipn.NeedsLogin && joined && !n.loggingOut.Load() {
				if err := n.lc.StartLoginInteractive(ctx); err != nil {
					log.Printf("tsnet: asking for a login URL: %v", err)
				}
			}
		}
		self := m.SelfChange
		if self == nil && m.NetMap != nil && m.NetMap.SelfNode.Valid() {
			self = m.NetMap.SelfNode.AsStruct()
		}
		if self != nil {
			n.selfChanged(self)
			if e := expiryOf(self); expiry == nil || *expiry != e {
				expiry = &e
				emit(event{Event: "keyExpiry", Value: e})
			}
		}
		if m.Health != nil {
			emit(event{Event: "health", Value: warningsOf(m.Health)})
		}
		if m.BrowseToURL != nil && *m.BrowseToURL != "" {
			emit(event{Event: "loginURL", Value: *m.BrowseToURL})
		}
		if m.ErrMessage != nil && *m.ErrMessage != "" {
			emit(event{Event: "message", Value: *m.ErrMessage})
			// The backend would offer the auth key again and again: without it there is a URL.
			if state == ipn.NeedsLogin && joined && !keyless {
				keyless = true
				err := n.lc.Start(ctx, ipn.Options{})
				if err == nil {
					err = n.lc.StartLoginInteractive(ctx)
				}
				if err != nil {
					log.Printf("tsnet: asking for a login URL: %v", err)
				}
			}
		}
	}
}
