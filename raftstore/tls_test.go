package raftstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// authority signs certificates of nodes.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a.cert = a.parse(x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key))
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a authority) parse(der []byte, err error) *x509.Certificate {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// config gives the configuration of a node of that name.
func (a authority) config(name string) *tls.Config {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.parse(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key))
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
}

// secureCluster makes a cluster with those configurations, nil for plain ones.
func secureCluster(t *testing.T, configs map[string]*tls.Config) *cluster {
	t.Helper()
	var names []string
	for _, name := range []string{"n1", "n2", "n3"} {
		if _, is := configs[name]; is {
			names = append(names, name)
		}
	}
	c := newCluster(t, names...)
	for name, n := range c.nodes {
		n.closeNetwork()
		n.opts.TLS = configs[name]
		n.openNetwork()
	}
	return c
}

func TestReplicationOverTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := secureCluster(t, map[string]*tls.Config{"n1": a.config("n1"), "n2": a.config("n2"), "n3": a.config("n3")})
	for _, n := range c.nodes {
		n.open(c.names...)
	}
	want := c.putMany(0, 20, 300_000) // more than a frame
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
}

func TestPeersWithoutTheRightCertificateAreRefused(t *testing.T) {
	t.Parallel()
	a, b := newAuthority(t), newAuthority(t)
	shared := func(ca authority) *tls.Config {
		c := ca.config("replication")
		c.ServerName = "replication"
		return c
	}
	for what, configs := range map[string]map[string]*tls.Config{
		"another authority":     {"n1": a.config("n1"), "n2": b.config("n2")},
		"plain dialer":          {"n1": a.config("n1"), "n2": nil},
		"plain listener":        {"n1": nil, "n2": a.config("n2")},
		"another node's":        {"n1": a.config("n1"), "n2": a.config("n3")},
		"the listener's":        {"n1": a.config("n3"), "n2": a.config("n2")},
		"not the one for all":   {"n1": shared(a), "n2": a.config("n2")},
		"none that is verified": {"n1": a.config("n1"), "n2": {RootCAs: a.config("n2").RootCAs, Certificates: []tls.Certificate{{}}}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := secureCluster(t, configs)
			c.nodes["n1"].open("n1")
			c.put("x")
			n2 := c.nodes["n2"]
			if err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()); err == nil {
				t.Fatal("it was let in")
			} else {
				t.Log(err)
			}
		})
	}
	t.Run("one for all", func(t *testing.T) {
		t.Parallel()
		c := secureCluster(t, map[string]*tls.Config{"n1": shared(a), "n2": shared(a)})
		c.nodes["n1"].open("n1")
		c.put("x")
		n2 := c.nodes["n2"]
		if err := raftstore.Fetch(timeout(t), n2.network, theGroup, "n1", n2.log()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNetworkOptionsThatCanNotBe(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for want, change := range map[string]func(*raftstore.NetworkOptions){
		"node's name":     func(o *raftstore.NetworkOptions) { o.Node = "" },
		"cluster's id":    func(o *raftstore.NetworkOptions) { o.Cluster = strings.Repeat("x", 256) },
		"cluster's key":   func(o *raftstore.NetworkOptions) { o.Key = o.Key[:31] },
		"directory's id":  func(o *raftstore.NetworkOptions) { o.ID = strings.Repeat("x", 256) },
		"resolve":         func(o *raftstore.NetworkOptions) { o.Resolve = nil },
		"the least is":    func(o *raftstore.NetworkOptions) { o.CatchUpRate = 1000 },
		"no authority":    func(o *raftstore.NetworkOptions) { o.TLS = &tls.Config{} },
		"no certificate":  func(o *raftstore.NetworkOptions) { o.TLS = &tls.Config{RootCAs: a.config("n1").RootCAs} },
		"":                func(o *raftstore.NetworkOptions) {},
		"listener and a ": func(o *raftstore.NetworkOptions) { _ = o.Listener.Close(); o.Listener = nil },
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		opts := raftstore.NetworkOptions{
			Node: "n1", Cluster: "c", Key: theKey, Listener: listener, Resolve: func(string) (string, error) { return "", nil },
		}
		change(&opts)
		n, err := raftstore.NewNetwork(opts)
		if want == "" {
			if err != nil {
				t.Fatal(err)
			}
			_ = n.Close()
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := listener.Accept(); err == nil {
			t.Errorf("%q: the listener is open", want)
		}
	}
}
