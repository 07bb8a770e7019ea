package broker_test

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// An impostor answers a node's questions about its membership, in the name of
// nodes that are away.
type impostor struct {
	nc     *nats.Conn
	status subjects.ClusterStatus
	ids    map[string]string

	mu    sync.Mutex
	asked map[string]int
	real  map[string][]byte // what each node has answered before
}

// answer forges an answer to the first question to a node. To later ones it
// replays the node's answer to another question.
func (i *impostor) answer(m *nats.Msg) {
	name := strings.Split(m.Subject, ".")[3]
	i.mu.Lock()
	k := i.asked[name]
	i.asked[name]++
	i.mu.Unlock()
	said := i.real[name]
	if k == 0 {
		said = i.denial(name, m)
	}
	_ = m.Respond(said)
}

// denial returns an answer that is correct except for the signature: n2's has
// none, n3's is signed with another key.
func (i *impostor) denial(name string, m *nats.Msg) []byte {
	var q struct{ Nonce string }
	_, body, _ := strings.Cut(string(m.Data), "\n")
	_ = json.Unmarshal([]byte(body), &q)
	body = fmt.Sprintf(`{"nonce":%q,"member":false,"facts":%d}`, q.Nonce, uint64(1<<40))
	line, sign := fmt.Sprintf("CANTUS3 %s %s %s instance 1000", i.status.ID, name, i.ids[name]), "-"
	if name == "n3" {
		mac := hmac.New(sha256.New, make([]byte, 32))
		fmt.Fprintf(mac, "%s answered\n%s\n%s", m.Subject, line, body)
		sign = hex.EncodeToString(mac.Sum(nil))
	}
	return []byte(line + " " + sign + "\n" + body)
}

// questions returns how often the node that was asked least was asked.
func (i *impostor) questions() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return min(i.asked["n2"], i.asked["n3"])
}

// A node that asks the others whether it is a member believes only signed
// answers, and only to its own question.
func TestForgedAnswersAboutAMembership(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	n1, denies := c.node("n1"), map[string]any{}
	if err := json.Unmarshal(broker.AnnouncementOf(c.node("n2")), &denies); err != nil {
		t.Fatal(err)
	}
	denies["members"], denies["facts"] = []string{"n2"}, 1<<40
	denial, err := json.Marshal(denies)
	if err != nil {
		t.Fatal(err)
	}
	i := &impostor{nc: c.nodeConn("n1"), status: c.status("n1"), ids: map[string]string{}, asked: map[string]int{}, real: map[string][]byte{}}
	answers, err := i.nc.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	broker.Hear(n1, denial)
	for len(i.real) < 2 {
		m, err := answers.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if fields := strings.Fields(string(m.Data)); strings.Contains(string(m.Data), `"member":true`) {
			i.real[fields[2]], i.ids[fields[2]] = m.Data, fields[3]
		}
	}
	eventually(t, "n2 and n3 say that n1 is a member", func() bool { return !broker.SuspectsRemoval(n1) })

	m := ask(t, i.nc, "cantus.admin.node.n1.member",
		fmt.Sprintf("CANTUS3 %s n2 %s instance 1000 -\n%s", i.status.ID, i.ids["n2"], `{"nonce":"x","node":"n2","id":"x"}`))
	if e := wantRefusal(t, m, subjects.BadRequest); !strings.Contains(e.Message, "only nodes") {
		t.Errorf("an unsigned question is refused with %q", e.Message)
	}
	c.stop("n2")
	c.stop("n3")
	if _, err := i.nc.Subscribe("cantus.admin.node.*.member", i.answer); err != nil {
		t.Fatal(err)
	}
	if err := i.nc.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	broker.Hear(n1, denial)
	eventually(t, "both sorts of answers have come", func() bool { return i.questions() > 2 || !broker.SuspectsRemoval(n1) })
	if err := n1.Err(); err != nil || !broker.SuspectsRemoval(n1) {
		t.Errorf("n1 believes a forged answer: suspects its removal: %t, %v", broker.SuspectsRemoval(n1), err)
	}
}

// A secret that was wrapped for a node can be opened by no other, for no other
// purpose, and not if a bit of it differs.
func TestAWrappedSecret(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret := wal.Secret{Key: []byte(token), Token: true}
	wrapped, err := broker.WrapSecret(secret, key.PublicKey().Bytes(), "cluster/n4/id")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := broker.UnwrapSecret(wrapped, key, "cluster/n4/id"); err != nil || string(s.Key) != token || !s.Token {
		t.Fatalf("%+v, %v", s, err)
	}
	if strings.Contains(string(wrapped), token) {
		t.Error("the secret can be read")
	}
	if s, err := broker.UnwrapSecret(wrapped, key, "cluster/n5/id"); err == nil {
		t.Errorf("for another node: %+v", s)
	}
	if s, err := broker.UnwrapSecret(wrapped, other, "cluster/n4/id"); err == nil {
		t.Errorf("with another key: %+v", s)
	}
	for i := range wrapped {
		wrapped[i] ^= 1
		if s, err := broker.UnwrapSecret(wrapped, key, "cluster/n4/id"); err == nil {
			t.Errorf("byte %d differs: %+v", i, s)
		}
		wrapped[i] ^= 1
		if s, err := broker.UnwrapSecret(wrapped[:i], key, "cluster/n4/id"); err == nil {
			t.Errorf("the first %d bytes: %+v", i, s)
		}
	}
}
