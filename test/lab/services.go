package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	pebbleca "github.com/letsencrypt/pebble/v2/ca"
	pebbledb "github.com/letsencrypt/pebble/v2/db"
	pebbleva "github.com/letsencrypt/pebble/v2/va"
	pebblewfe "github.com/letsencrypt/pebble/v2/wfe"
	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// authority is the lab's own certificate authority, for the https of its servers. It has nothing to
// do with the ACME authority, whose certificates only nodes get.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// backdate lets a machine whose clock is behind (an appliance without a battery) still talk to the
// lab.
const backdate = 10 * 365 * 24 * time.Hour

func newAuthority() (*authority, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Gatehouse lab server authority"},
		NotBefore:             time.Now().Add(-backdate),
		NotAfter:              time.Now().Add(365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{k, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// issue makes a server certificate for names.
func (a *authority) issue(names []string) (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: names[0]},
		DNSNames:     names,
		NotBefore:    time.Now().Add(-backdate),
		NotAfter:     time.Now().Add(300 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, nil
}

func serial() *big.Int { return must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))) }

// derpServers is the relay and the STUN server beside it.
type derpServers struct {
	derpMap *tailcfg.DERPMap
	close   func()
}

func (d *derpServers) Close() { d.close() }

// startDERP serves DERP over TLS and plain http, and STUN, all by name: as with a DERP map of one's
// own, nodes look the name up and verify the certificate by an authority they know. (Tailscale's
// map has addresses beside the names.)
func startDERP(ca *authority, logger *log.Logger) (*derpServers, error) {
	cert, err := ca.issue([]string{"derp.lab.test"})
	if err != nil {
		return nil, err
	}
	d := derpserver.New(key.NewNode(), logger.Printf)
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.AddWebSocketSupport(d, derpserver.Handler(d)))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	tlsConf := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}
	d.ModifyTLSConfigToAddMetaCert(tlsConf)
	// DERP takes the connection over, which HTTP/2 does not allow.
	off := make(map[string]func(*http.Server, *tls.Conn, http.Handler))
	secure := &http.Server{Handler: mux, ErrorLog: logger, TLSConfig: tlsConf, TLSNextProto: off}
	plain := &http.Server{Handler: mux, ErrorLog: logger}
	ln443, err := net.Listen("tcp", net.JoinHostPort(derpIP, "443"))
	if err != nil {
		return nil, err
	}
	ln6, err := net.Listen("tcp", net.JoinHostPort(derpIP6, "443"))
	if err != nil {
		ln443.Close()
		return nil, err
	}
	ln80, err := net.Listen("tcp", net.JoinHostPort(derpIP, "80"))
	if err != nil {
		ln443.Close()
		ln6.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	stun := stunserver.New(ctx)
	stun6 := stunserver.New(ctx)
	if err := errors.Join(stun.Listen(net.JoinHostPort(derpIP, "3478")), stun6.Listen(net.JoinHostPort(derpIP6, "3478"))); err != nil {
		cancel()
		ln443.Close()
		ln6.Close()
		ln80.Close()
		return nil, err
	}
	go stun.Serve()
	go stun6.Serve()
	go secure.ServeTLS(ln443, "", "")
	go secure.ServeTLS(ln6, "", "")
	go plain.Serve(ln80)
	return &derpServers{
		derpMap: &tailcfg.DERPMap{
			OmitDefaultRegions: true,
			Regions: map[int]*tailcfg.DERPRegion{1: {
				RegionID: 1, RegionCode: "lab", RegionName: "Lab",
				Nodes: []*tailcfg.DERPNode{{
					Name: "1a", RegionID: 1,
					HostName: "derp.lab.test", STUNPort: 3478, DERPPort: 443, CanPort80: true,
				}},
			}},
		},
		close: func() {
			cancel()
			secure.Close()
			plain.Close()
			d.Close()
		},
	}, nil
}

// startNTP answers SNTP requests (RFC 5905 section 14) with this machine's clock.
func startNTP(addr string) (net.PacketConn, error) {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			arrived := time.Now()
			if n < 48 || buf[0]&7 != 3 { // mode 3: a client asks
				continue
			}
			out := make([]byte, 48)
			out[0] = buf[0]&0x38 | 4                               // no leap second, the asker's version, mode 4: server
			out[1] = 2                                             // stratum: a stratum of 1 would claim a clock of our own
			out[2] = buf[2]                                        // poll interval
			out[3] = 0xec                                          // precision: 2^-20 s
			binary.BigEndian.PutUint32(out[4:], 1<<8)              // root delay: 1/256 s
			binary.BigEndian.PutUint32(out[8:], 1<<8)              // root dispersion: zero makes some clients doubt
			copy(out[12:], []byte{127, 127, 1, 1})                 // reference: the local clock
			copy(out[24:32], buf[40:48])                           // origin: when the asker sent
			binary.BigEndian.PutUint64(out[16:], ntpTime(arrived)) // reference time
			binary.BigEndian.PutUint64(out[32:], ntpTime(arrived))
			binary.BigEndian.PutUint64(out[40:], ntpTime(time.Now()))
			pc.WriteTo(out, from)
		}
	}()
	return pc, nil
}

// ntpTime is t in NTP's format: seconds since 1900 in the upper half, the fraction in the lower.
func ntpTime(t time.Time) uint64 {
	const since1900 = 2208988800
	return uint64(t.Unix()+since1900)<<32 | uint64(t.Nanosecond())<<32/1_000_000_000
}

// withOrderLocation has the answer to a finalized order say where the order is, as Let's Encrypt's does (RFC 8555,
// section 7.4): Pebble leaves it out, and Go's ACME client, by which Tailscale gets its certificates, goes by it.
func withOrderLocation(pebble http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id, ok := strings.CutPrefix(r.URL.Path, "/finalize-order/"); ok {
			w.Header().Set("Location", "https://acme.lab.test/my-order/"+id)
		}
		pebble.ServeHTTP(w, r)
	})
}

// acmeServer is the ACME authority.
type acmeServer struct {
	srv   *http.Server
	roots []byte // PEM
}

func (a *acmeServer) Close() { a.srv.Close() }

// startACME runs Pebble. It validates challenges for real, through the lab's DNS; its random pauses
// are off unless PEBBLE_VA_SLEEPTIME asks for them. More of what an authority may want, by
// environment:
//
//	LAB_ACME_EAB=KEY-ID:KEY     only accounts bound to this key (base64url) are made
//	LAB_ACME_BLOCKED=NAME,…     no orders for these names and those below them
func startACME(ca *authority, logger *log.Logger) (*acmeServer, error) {
	if os.Getenv("PEBBLE_VA_SLEEPTIME") == "" {
		os.Setenv("PEBBLE_VA_NOSLEEP", "1")
	}
	os.Unsetenv("PEBBLE_VA_ALWAYS_VALID")
	// A fresh order is to be validated afresh, whatever was proved before.
	os.Setenv("PEBBLE_AUTHZREUSE", "0")
	db := pebbledb.NewMemoryStore()
	profiles := map[string]pebbleca.Profile{
		"default": {Description: "90 days, as Let's Encrypt's classic profile", ValidityPeriod: 90 * 24 * 3600},
	}
	issuer := pebbleca.New(logger, db, "", "ecdsa", 0, 1, profiles)
	va := pebbleva.New(logger, 80, 443, false, net.JoinHostPort(routerIP, "53"), db)
	keyID, macKey, requireEAB := strings.Cut(os.Getenv("LAB_ACME_EAB"), ":")
	if requireEAB {
		if err := db.AddExternalAccountKeyByID(keyID, macKey); err != nil {
			return nil, fmt.Errorf("LAB_ACME_EAB: %w", err)
		}
	}
	for name := range strings.SplitSeq(os.Getenv("LAB_ACME_BLOCKED"), ",") {
		if name == "" {
			continue
		}
		if err := db.AddBlockedDomain(name); err != nil {
			return nil, fmt.Errorf("LAB_ACME_BLOCKED: %w", err)
		}
	}
	wfe := pebblewfe.New(logger, db, va, issuer, []string{"acme.lab.test"}, false, requireEAB, 1, 1)
	cert, err := ca.issue([]string{"acme.lab.test"})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(acmeIP, "443"))
	if err != nil {
		return nil, err
	}
	root := issuer.GetRootCert(0)
	if root == nil {
		return nil, fmt.Errorf("the ACME authority has no root certificate")
	}
	srv := &http.Server{
		Handler: withOrderLocation(wfe.Handler()), ErrorLog: logger,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	go srv.ServeTLS(ln, "", "")
	return &acmeServer{srv: srv, roots: root.PEM()}, nil
}
