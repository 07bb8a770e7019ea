package broker_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// intruder listens to the nodes and repeats their announcements, altered. It
// knows everything that an announcement needs: ids, instances, numbers, and
// which instances the nodes hear. Only the key is missing, unless it has one.
type intruder struct {
	t    *testing.T
	nc   *nats.Conn
	sub  *nats.Subscription
	said map[string]overheard // by node
	// instances are all that were heard.
	instances map[string]bool
	number    uint64
	key       []byte
}

// overheard is a node's announcement: the fields of its line, and the body.
type overheard struct {
	line []string
	body map[string]any
}

// firstLie is the number of an intruder's first announcement. Nodes don't get
// that far.
const firstLie = 1 << 40

// newIntruder connects an intruder to a node's server.
func (c *nodes) newIntruder(at string) *intruder {
	c.t.Helper()
	s := &intruder{t: c.t, nc: c.nodeConn(at), said: map[string]overheard{}, instances: map[string]bool{}, number: firstLie}
	var err error
	if s.sub, err = s.nc.SubscribeSync(announcementSubject); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// listen receives the next announcement, and returns the node's name; "" if it
// is forged, or there is none.
func (s *intruder) listen() (name string) {
	m, err := s.sub.NextMsg(patience)
	if err != nil {
		return ""
	}
	line, body, _ := strings.Cut(string(m.Data), "\n")
	o := overheard{line: strings.Split(line, " ")}
	if len(o.line) != 7 || json.Unmarshal([]byte(body), &o.body) != nil {
		return ""
	}
	if number, err := strconv.ParseUint(o.line[5], 10, 64); err != nil || number >= firstLie {
		return ""
	}
	s.said[o.line[2]], s.instances[o.line[4]] = o, true
	return o.line[2]
}

// overhear listens until each node has sent an announcement that want accepts.
func (s *intruder) overhear(want func(body map[string]any) bool, names ...string) {
	s.t.Helper()
	missing := slices.Clone(names)
	eventually(s.t, fmt.Sprint(names, " are overheard"), func() bool {
		if name := s.listen(); name != "" && want(s.said[name].body) {
			missing = slices.DeleteFunc(missing, func(n string) bool { return n == name })
		}
		return len(missing) == 0
	})
}

func anything(map[string]any) bool { return true }

// lie publishes a node's last announcement with some changes: with the old
// signature, and in the form of the first protocol, which had none.
func (s *intruder) lie(name string, change map[string]any) {
	last := s.said[name]
	body, line := maps.Clone(last.body), slices.Clone(last.line)
	var heard []map[string]any
	for instance := range s.instances {
		heard = append(heard, map[string]any{"instance": instance, "number": uint64(firstLie)})
	}
	body["heard"] = heard
	maps.Copy(body, change)
	s.number++
	line[2], line[3], line[4], line[5] = fmt.Sprint(body["name"]), fmt.Sprint(body["node_id"]), fmt.Sprint(body["instance"]), fmt.Sprint(s.number)
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Error(err)
		return
	}
	if s.key != nil {
		mac := hmac.New(sha256.New, s.key)
		fmt.Fprintf(mac, "%s\n%s\n%s", announcementSubject, strings.Join(line[:6], " "), b)
		line[6] = hex.EncodeToString(mac.Sum(nil))
	}
	for _, text := range []string{strings.Join(line, " ") + "\n" + string(b), string(b)} {
		if err := s.nc.Publish(announcementSubject, []byte(text)); err != nil {
			s.t.Error(err)
		}
	}
}
