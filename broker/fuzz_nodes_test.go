package broker

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// fuzzIdentity returns the identity of node n1 in a cluster with a secret.
func fuzzIdentity(tb testing.TB) *identity {
	tb.Helper()
	o, err := Options{Cluster: "c"}.withDefaults()
	if err != nil {
		tb.Fatal(err)
	}
	i := newIdentity(o, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rejected"}, []string{"what"}))
	i.setFounded(wal.Identity{Cluster: "c", ID: "c1", Node: "n1", NodeID: "id1", Founders: map[string]string{"n1": "id1", "n2": "id2"}})
	i.setSecret(wal.Secret{Key: bytes.Repeat([]byte{7}, wal.SecretSize)})
	return i
}

// signedBy returns a body in the envelope of node n2, signed with a key, nil
// for none.
func signedBy(key []byte, subject string, number uint64, body []byte) []byte {
	e := envelope{protocol: protocolVersion, cluster: "c1", name: "n2", id: "id2", instance: "i2", number: number, body: body}
	return e.encode(key, subject)
}

// FuzzEnvelope checks that a message between nodes is believed if, and only if,
// a holder of the cluster's secret has signed it for its subject.
func FuzzEnvelope(f *testing.F) {
	i := fuzzIdentity(f)
	key, subject := messageKey(i.currentSecret().Key, "c1"), i.names.Admin("hello")
	f.Add(signedBy(bytes.Repeat([]byte{8}, 32), subject, 1, []byte("{}")), []byte("{}"))
	f.Add(signedBy(nil, subject, 1, []byte("{}")), []byte(`{"name":"n2"}`))
	f.Add([]byte("CANTUS3 c1 n2 id2 i2 1 "+strings.Repeat("0", 64)+"\n{}"), []byte("\n"))
	f.Add([]byte("CANTUS-1 - - - - 18446744073709551616 -\n"), []byte{})
	f.Add([]byte(strings.Repeat("CANTUS3 ", 200)), []byte{})
	f.Fuzz(func(t *testing.T, message, body []byte) {
		if e, err := openEnvelope(message); err == nil {
			if i.proved(e, subject) {
				t.Fatalf("believed: %q", message)
			}
			if !bytes.HasSuffix(message, e.body) || len(e.signed) > maxEnvelopeLine {
				t.Fatalf("%q was read as %+v", message, e)
			}
		} else if !errors.Is(err, errEnvelope) {
			t.Fatal(err)
		}
		good := signedBy(key, subject, 7, body)
		e, err := openEnvelope(good)
		if err != nil || !i.proved(e, subject) || !bytes.Equal(e.body, body) || e.number != 7 || e.name != "n2" || e.id != "id2" || e.cluster != "c1" {
			t.Fatalf("%q was read as %+v, %v", good, e, err)
		}
		if i.proved(e, answerTo(subject)) {
			t.Fatal("it is believed on another subject")
		}
		for n := range min(len(message), 4) { // a few altered copies
			bad := bytes.Clone(good)
			bad[int(message[n])*len(bad)/256] ^= 1 + message[n]>>1
			if e, err := openEnvelope(bad); err == nil && !bytes.Equal(bad, good) && i.proved(e, subject) && !strings.EqualFold(string(bad), string(good)) {
				t.Fatalf("believed although it was altered: %q", bad)
			}
		}
	})
}

// FuzzAnnouncement gives a node announcements: as an outsider sends them, none
// of which may make a member, and as a member whose node is compromised signs
// them, which may say anything and must do no more than be compared.
func FuzzAnnouncement(f *testing.F) {
	whole, err := json.Marshal(announcement{
		Name: "n2", NodeID: "id2", Instance: "i2", Protocol: protocolVersion, Cluster: "c", ClusterID: "c1", Raft: "127.0.0.1:1",
		Meta:   &groupReport{State: "leader", Term: 3, Voters: map[string]bool{"n1": true}},
		Groups: []groupReport{{Partition: 0, State: "leader", Term: 2, Txid: 9, Digests: []chainPoint{{wal.Base{Txid: 5}, 6}}}, {Partition: -1}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"name":"n2","node_id":"id2","instance":"i2","protocol":3,"cluster_id":"c1"}`))
	f.Add([]byte(`{"name":"a.b","groups":[{"partition":-9223372036854775808,"digests":[{"Txid":1,"Digest":[1]}]}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		i := fuzzIdentity(t)
		p := newPeers(i.instance, i.number.Load)
		var chain digests
		chain.add(chainPoint{wal.Base{Txid: 5}, 6})
		said := 0
		g := newGossip(i, p, gossipNode{
			describe: func(*announcement) {}, measure: func(*announcement) {},
			heard: func(a announcement) {
				said++
				for _, r := range a.Groups {
					chain.compare(r.Digests)
					p.leader(r.Partition, time.Now())
				}
				if a.Meta != nil {
					chain.compare(a.Meta.Digests)
				}
				(&membership{
					identity: i, wake: func() {}, background: func(func()) {},
					facts: func() (cluster.Facts, <-chan struct{}, bool) { return cluster.Facts{}, nil, true },
				}).check(a)
			},
			checkMember: func(string, string) error { return nil }, nameTaken: func(announcement) bool { return false },
			isMember: func(string, string) bool { return false }, routed: func(string, string) bool { return false },
			served: func() bool { return true }, allowLeading: func() {},
			fail: func(err error) { t.Fatalf("the node stops: %v", err) }, failed: func() error { return nil },
		})
		subject := i.names.Admin("hello")
		var a announcement
		if json.Unmarshal(body, &a) == nil { // what an outsider can make of it
			a.ClusterID = ""
			unsigned := mustJSON(a)
			g.onAnnouncement(&natslink.Message{Subject: subject, Payload: envelope{
				protocol: a.Protocol, name: a.Name, id: a.NodeID, instance: a.Instance, body: unsigned,
			}.encode(nil, subject)})
		}
		g.onAnnouncement(&natslink.Message{Subject: subject, Payload: body})
		g.onAnnouncement(&natslink.Message{Subject: subject, Payload: signedBy(nil, subject, 1, body)})
		if said > 0 || len(p.all(time.Now())) > 0 {
			t.Fatalf("an outsider's announcement is accepted: %q", body)
		}
		key := messageKey(i.currentSecret().Key, "c1")
		number := i.number.Add(1)
		heard := fmt.Appendf(nil, `,"heard":[{"instance":%q,"number":%d}],"name":"n2","node_id":"id2","instance":"i2","protocol":%d,"cluster":"c","cluster_id":"c1"}`,
			i.instance, number, protocolVersion)
		if trimmed := bytes.TrimSpace(body); len(trimmed) > 2 && trimmed[len(trimmed)-1] == '}' {
			body = append(bytes.Clone(trimmed[:len(trimmed)-1]), heard...)
		}
		for n := uint64(1); n < 3; n++ {
			g.onAnnouncement(&natslink.Message{Subject: subject, Payload: signedBy(key, subject, n, body)})
		}
		if all := p.all(time.Now()); len(all) > 1 || len(all) == 1 && all[0].Name != "n2" {
			t.Fatalf("n2 made others: %+v", all)
		}
	})
}

// FuzzNodeRequest sends a node the requests of other nodes: to join, whether a
// node is a member, and about connections that are behind. A request that is
// not signed gets no secret and learns nothing.
func FuzzNodeRequest(f *testing.F) {
	private, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{3}, 32))
	if err != nil {
		f.Fatal(err)
	}
	key := private.PublicKey().Bytes()
	joins := mustJSON(announcement{Name: "n2", NodeID: "id2", Instance: "i2", Protocol: protocolVersion, ClusterID: "c1", Key: key})
	for _, body := range [][]byte{
		joins, []byte(`{"nonce":"x","node":"n2","id":"id2"}`), []byte(`{"node":"n2","number":1,"base":2}`),
		[]byte(`{"node":"n2","question":{"node":"n1","number":1,"base":0},"subjects":{"a":1}}`), []byte(`{}`), {},
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		i := fuzzIdentity(t)
		facts := cluster.Bootstrap(map[string]string{"n1": "id1"}, 1, 1)
		facts.Nodes["n2"] = cluster.Member{ID: "id2", Key: fingerprint(key)}
		m := &meta{identity: i, facts: facts, changed: make(chan struct{})}
		member := &membership{identity: i, facts: func() (cluster.Facts, <-chan struct{}, bool) { return facts, nil, true }}
		o := &operations{identity: i, meta: m, membership: member}
		secret := messageKey(i.currentSecret().Key, "c1")
		for _, signed := range []bool{false, true} {
			by := secret
			if !signed {
				by = nil
			}
			message := func(subject string) *natslink.Message {
				return &natslink.Message{Subject: subject, Reply: "r", Payload: signedBy(by, subject, 1, body)}
			}
			reply, err := o.join(message(i.names.Admin("join")))
			if e := new(subjects.Error); err != nil && !errors.As(err, &e) {
				t.Fatalf("refused by %v", err)
			}
			if signed && len(reply.Wrapped) > 0 {
				t.Fatal("a node that has the secret gets it again")
			}
			if len(reply.Wrapped) > 0 {
				var a announcement
				if err := json.Unmarshal(body, &a); err != nil || fingerprint(a.Key) != fingerprint(key) {
					t.Fatalf("the secret is wrapped for another key: %q", body)
				}
			}
			if _, err := member.onMember(context.Background(), message(i.names.Admin("node", "n1", "member"))); err == nil && !signed {
				t.Fatal("an outsider is answered")
			}
			p := &pacer{identity: i, questions: make(chan paceQuestion, 1)}
			p.onQuestion(message(i.names.Admin("pace")))
			if !signed && len(p.questions) > 0 {
				t.Fatal("an outsider's question is taken in")
			}
			p.onAnswer(message(i.names.Admin("pace", "n2")))
			if len(p.peers) > 0 {
				t.Fatalf("an answer made a peer: %+v", p.peers)
			}
		}
	})
}

// FuzzWrappedSecret checks that a node takes no secret out of a box that was
// not made for it.
func FuzzWrappedSecret(f *testing.F) {
	private, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{3}, 32))
	if err != nil {
		f.Fatal(err)
	}
	other, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{4}, 32))
	if err != nil {
		f.Fatal(err)
	}
	secret := wal.Secret{Key: bytes.Repeat([]byte{9}, wal.SecretSize)}
	for _, to := range []*ecdh.PrivateKey{private, other} {
		box, err := wrapSecret(secret, to.PublicKey().Bytes(), "c/n2/another")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(box)
	}
	f.Add(make([]byte, 32))
	f.Add(bytes.Repeat([]byte{255}, 80))
	f.Fuzz(func(t *testing.T, box []byte) {
		if s, err := unwrapSecret(box, private, "c/n2/id2"); err == nil {
			t.Fatalf("opened: %+v", s)
		} else if s.Key != nil {
			t.Fatal("a secret beside an error")
		}
		if _, err := wrapSecret(secret, box, "c/n2/id2"); err == nil && len(box) != publicKeySize {
			t.Fatalf("%d bytes are a key", len(box))
		}
		b := &bootstrap{identity: fuzzIdentity(t)}
		b.log, b.private = slog.New(slog.DiscardHandler), private
		waiting, err := b.openReply(envelope{cluster: "c1"}, joinReply{ID: "c1", Wrapped: box}, "s")
		if err != nil || waiting == "" {
			t.Fatalf("the reply is believed: %q, %v", waiting, err)
		}
	})
}
