package main

import (
	"encoding/json"
	"net/http"
	"strconv"

	"tailscale.com/tailcfg"
	"tailscale.com/util/rands"
)

// With --headscale the control server differs from Tailscale's as Headscale v0.29 does: there are
// no names for certificates and no set-dns (501), login names have no domain, keys have a form of
// their own, a device that joins by a key may ask for no tags, and
// /key answers only to clients of today. (hscontrol/handlers.go, auth.go, state/state.go and
// noise.go there.)

// noiseCapability is the first capability version that /key answers to there
// (NoiseCapabilityVersion).
const noiseCapability = 39

// newPreAuthKey returns a key of the shape Headscale's have.
func newPreAuthKey() string { return "hskey-auth-" + rands.HexString(12) + "-" + rands.HexString(64) }

// serveHeadscaleKey answers as Headscale does: with nothing, and 200, to those who say they are
// old. It notes what version was told.
func (c *controlServer) serveHeadscaleKey(w http.ResponseWriter, r *http.Request) {
	v, err := strconv.Atoi(r.FormValue("v"))
	if err != nil {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.asked[v]++
	c.mu.Unlock()
	if v >= noiseCapability {
		writeJSON(w, &tailcfg.OverTLSPublicKeyResponse{PublicKey: c.private.Public()})
	}
}

// keyVersions returns how often /key was asked for, by the capability version that was told, and
// the one of the Tailscale this is built with.
func (c *controlServer) keyVersions() map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := map[string]int{}
	for v, n := range c.asked {
		asked[strconv.Itoa(v)] = n
	}
	return map[string]any{"asked": asked, "current": int(tailcfg.CurrentCapabilityVersion)}
}

// withoutCertDomains takes the names for certificates out of a map response.
func withoutCertDomains(res map[string]json.RawMessage) error {
	if res["DNSConfig"] == nil {
		return nil
	}
	dns := &tailcfg.DNSConfig{}
	if err := json.Unmarshal(res["DNSConfig"], dns); err != nil {
		return err
	}
	dns.CertDomains = nil
	res["DNSConfig"] = must(json.Marshal(dns))
	return nil
}
