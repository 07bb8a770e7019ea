package broker

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// keyMapper notes which appends by key are mapped.
type keyMapper struct {
	mu     sync.Mutex
	mapped map[string]int
}

func (k *keyMapper) MapKeys(names subjects.Names, partitions int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mapped[names.Prefix] = partitions
	return nil
}

func (k *keyMapper) UnmapKeys(names subjects.Names) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mapped, names.Prefix)
}

func (k *keyMapper) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fmt.Sprint(k.mapped)
}

// A node that hears of several changes at once ends up with what they come to:
// a namespace that was removed and made again may have another number of
// partitions, by which keys are mapped.
func TestNamespacesThatAreMadeAgain(t *testing.T) {
	var mu sync.Mutex
	facts, changed := cluster.Facts{}, make(chan struct{})
	set := func(all map[string]cluster.Namespace) {
		mu.Lock()
		defer mu.Unlock()
		facts.Namespaces = all
		close(changed)
		changed = make(chan struct{})
	}
	keys := &keyMapper{mapped: map[string]int{}}
	s := &namespaces{
		log: slog.New(slog.DiscardHandler), names: subjects.Names{Prefix: "c"}, server: keys,
		shared: &sharedSubjects{all: map[*sharedSubject]struct{}{}},
		facts: func() (cluster.Facts, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return facts, changed
		},
		info: func(string, int) *clusterInfo { return &clusterInfo{} },
	}
	go s.run(t.Context())
	for _, c := range []struct {
		all  map[string]cluster.Namespace
		want string
	}{
		{map[string]cluster.Namespace{"a": {Partitions: []int{0}}, "b": {Partitions: []int{1}}}, "map[c.ns.a:1 c.ns.b:1]"},
		{map[string]cluster.Namespace{"a": {Partitions: []int{0, 2}}, "b": {Partitions: []int{1}}}, "map[c.ns.a:2 c.ns.b:1]"},
		{map[string]cluster.Namespace{"b": {Partitions: []int{1}}}, "map[c.ns.b:1]"},
		{nil, "map[]"},
	} {
		set(c.all)
		testkit.Until(t, c.want, func() bool { return keys.String() == c.want })
	}
}

// sent notes what is sent.
type sent []string

func (s *sent) Enqueue(commands []byte) { *s = append(*s, string(commands)) }

// A message that is refused as it arrives does not wait for the lock of the
// partition's state, which is held while a large batch is applied: the messages
// of all partitions would wait behind it.
func TestRefusalsTakeNoLock(t *testing.T) {
	names, out := subjects.Names{Prefix: "c"}, &sent{}
	r := &replica{state: newPartitionState(nil, stateOptions{}, time.Now, nil, nil), face: face{names: names}}
	metrics, stats := newMetrics(), newServiceStats()
	r.metrics = metrics.partition(0, stats)
	r.refusals = refusals{face: &r.face, outer: names, metrics: &r.metrics, outbox: out, mark: r.state.mark.Load}
	r.limiter = limiter{now: time.Now, kept: func() uint64 { return 5 }, refusals: metrics.limited}
	r.limiter.set(cluster.Limits{Kept: 5})
	r.state.mark.Store(7)
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.onAppend(&natslink.Message{Subject: "c.append.0", Reply: "r"})
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it waits")
	}
	if len(*out) != 1 || !strings.Contains((*out)[0], `"limit":"kept"`) || !strings.Contains((*out)[0], `"high_water_mark":7`) {
		t.Errorf("%q", *out)
	}
}
