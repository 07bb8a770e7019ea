package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

const writers = 8

// replay replays the history through a node.
//
// Eight writers take the commits from one queue, each taking the next when it
// is done with its last. What causes the file's order for each path is this:
// a writer that has taken a commit waits until every commit that this
// one builds on is acknowledged, to whichever writer. That is hearsay, as
// when a colleague says "I have pushed"; whether the writer's own view has it
// is another matter. It writes down what its view shows as the last commit of
// each path and sends that along with its mark. A view that is behind must be
// refused; the writer then applies up to the transaction that was named and
// sends again. So only the locks ensure that what is written down is true.
//
// Every other writer looks at the feed only when it was refused, so that
// there is much to refuse.
type replay struct {
	*history
	service   workload.Service
	partition int
	clients   []*workload.Client
	views     []*view

	// gate blocks commits that are not to be written yet; nil is open.
	gate *gate

	mu    sync.Mutex
	next  int              // the next commit to take
	done  []chan struct{}  // for each step, closed when it is acknowledged
	acked []workload.Reply // for each step
	// sent and again count the requests, and those that are sent again. A
	// killer waits for them.
	sent, again *counter
	refusals    []refused
	resent      int // requests that were sent again because no answer came
	duplicates  int // of those, how many the first one's answer came back for
}

// refused is a conflict that a writer got.
type refused struct {
	step int
	mark uint64
	workload.Refusal
}

func newReplay(t *testing.T, h *history, n *node, partition int) *replay {
	var clients []*workload.Client
	for range writers {
		clients = append(clients, dial(t, n.url))
	}
	return newReplayOf(t, h, n, clients, partition)
}

// newReplayOf has a writer for each of the clients.
func newReplayOf(t *testing.T, h *history, s workload.Service, clients []*workload.Client, partition int) *replay {
	r := &replay{history: h, service: s, partition: partition, acked: make([]workload.Reply, len(h.steps)), sent: newCounter(), again: newCounter()}
	for range h.steps {
		r.done = append(r.done, make(chan struct{}))
	}
	for _, c := range clients {
		v, err := newView(s, c, r.partition)
		if err != nil {
			t.Fatal(err)
		}
		r.clients, r.views = append(r.clients, c), append(r.views, v)
	}
	return r
}

// run returns when every step is acknowledged and every view is complete.
func (r *replay) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range r.views {
		group.Go(func() error {
			if err := r.write(ctx, i); err != nil {
				return fmt.Errorf("writer %d: %w", i, err)
			}
			return r.views[i].catchUp(ctx, uint64(len(r.steps)))
		})
	}
	return group.Wait()
}

// take returns a writer's next commit.
func (r *replay) take() (commit int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == len(r.commits) {
		return 0, false
	}
	r.next++
	return r.next - 1, true
}

func (r *replay) write(ctx context.Context, writer int) error {
	for {
		commit, ok := r.take()
		if !ok {
			return nil
		}
		if err := r.gate.pass(ctx, commit); err != nil {
			return err
		}
		steps := r.commits[commit]
		for _, i := range steps {
			for _, before := range r.steps[i].after {
				select {
				case <-r.done[before]:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			if err := r.append(ctx, writer, i); err != nil {
				return fmt.Errorf("step %d, commit %s: %w", i, r.steps[i].id(), err)
			}
		}
	}
}

// append sends a step until it is committed.
func (r *replay) append(ctx context.Context, writer, i int) error {
	v := r.views[writer]
	if eager := writer%2 == 0; eager {
		if err := v.takeFed(ctx); err != nil {
			return err
		}
	}
	for {
		m := r.message(i, v)
		hears := r.sent
		answer, tries, err := workload.Retry(ctx, r.service, r.clients[writer], func() (workload.Reply, error) {
			hears.add()
			hears = r.again
			return r.clients[writer].AppendMsg(ctx, m)
		})
		if err != nil {
			return err
		}
		if answer.Error == nil {
			return r.acknowledged(i, answer, tries)
		}
		if answer.Error.Reason != "conflict" {
			return fmt.Errorf("answered %v", answer)
		}
		r.mu.Lock()
		r.refusals = append(r.refusals, refused{step: i, mark: v.mark, Refusal: *answer.Error})
		r.resent += tries - 1
		r.mu.Unlock()
		if err := v.catchUp(ctx, answer.Error.Txid); err != nil {
			return err
		}
	}
}

// message builds a step's request from the writer's view.
func (r *replay) message(i int, v *view) *nats.Msg {
	s := r.steps[i]
	m := nats.NewMsg("cantus.append." + strconv.Itoa(r.partition))
	m.Data = s.payload
	m.Header["Cantus-Write-Lock"] = s.locks()
	m.Header["Cantus-High-Water-Mark"] = []string{strconv.FormatUint(v.mark, 10)}
	m.Header["Cantus-Kind"] = []string{"commit"}
	m.Header["Nats-Msg-Id"] = []string{s.id()}
	var builds []string
	for _, f := range s.Files {
		builds = append(builds, v.last[f[1]])
	}
	m.Header["Builds-On"] = []string{strings.Join(builds, ",")}
	return m
}

func (r *replay) acknowledged(i int, answer workload.Reply, tries int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer.Duplicate && tries == 1 {
		return errors.New("sent once, answered as a duplicate")
	}
	if answer.Duplicate {
		r.duplicates++
	}
	r.resent += tries - 1
	r.acked[i] = answer
	close(r.done[i])
	return nil
}

// entry is a committed transaction that was read back.
type entry struct {
	commit
	*nats.Msg
	locks []string
}

// check reads the partition and compares it with the file, with what was
// acknowledged and with what was refused.
func (r *replay) check(t *testing.T) {
	t.Helper()
	checkLog(t, r.history, r.partition, r.drained(t))
	r.checkAnswers(t)
	last := map[string]string{}
	for path, order := range r.order {
		last[path] = order[len(order)-1]
	}
	for i, v := range r.views {
		if !maps.Equal(v.last, last) {
			t.Errorf("writer %d's view differs from the file", i)
		}
	}
}

func (r *replay) drained(t *testing.T) []*nats.Msg {
	t.Helper()
	return drain(t, r.clients[0], r.partition)
}

// checkAnswers checks the writers' answers against the log.
func (r *replay) checkAnswers(t *testing.T) {
	t.Helper()
	log := r.drained(t)
	newest := newLockHistory(log)
	for i, answer := range r.acked {
		if answer.Txid == 0 || answer.Txid > uint64(len(log)) {
			t.Fatalf("step %d was acknowledged as %d of %d", i, answer.Txid, len(log))
		}
		m := log[answer.Txid-1]
		if string(m.Data) != string(r.steps[i].payload) || m.Header.Get("Cantus-Time") != answer.Time {
			t.Fatalf("acknowledged as txid %d at %s:\n%s\nthere is, of %s:\n%s",
				answer.Txid, answer.Time, r.steps[i].payload, m.Header.Get("Cantus-Time"), m.Data)
		}
	}
	for _, refusal := range r.refusals {
		newest.checkRefusal(t, refusal.Refusal, refusal.mark, "write", r.steps[refusal.step].locks())
	}
	if len(r.refusals) == 0 {
		t.Error("not one conflict: half of the writers should have been behind")
	}
}

// checkLog compares a partition with the file: each step must be there once,
// the steps of each path in the file's order, each transaction computed on the
// state just before it, the final state right, and every header as it was sent.
func checkLog(t *testing.T, h *history, partition int, log []*nats.Msg) {
	t.Helper()
	order, exists := map[string][]string{}, map[string]bool{}
	seen := map[string]bool{}
	before := ""
	for i, m := range log {
		e := checkEntry(t, h, partition, uint64(i+1), m)
		if seen[e.id()] {
			t.Fatalf("txid %d: commit %s is there twice", i+1, e.id())
		}
		seen[e.id()] = true
		if at := stamp(t, m); at <= before {
			t.Fatalf("txid %d: the time %s does not rise", i+1, m.Header.Get("Cantus-Time"))
		} else {
			before = at
		}
		var builds []string
		for _, f := range e.Files {
			last := ""
			if o := order[f[1]]; len(o) > 0 {
				last = o[len(o)-1]
			}
			builds = append(builds, last)
			order[f[1]] = append(order[f[1]], e.id())
			exists[f[1]] = f[0] != "D"
		}
		if got := m.Header.Get("Builds-On"); got != strings.Join(builds, ",") {
			t.Fatalf("txid %d: commit %s was computed on a stale state:\n%s, but it was\n%v", i+1, e.id(), got, builds)
		}
	}
	if len(log) != len(h.steps) {
		t.Fatalf("%d transactions, want %d", len(log), len(h.steps))
	}
	if !maps.Equal(exists, h.exists) {
		t.Error("which paths exist differs from the file")
	}
	if !maps.EqualFunc(order, h.order, slices.Equal) {
		t.Error("the per-path orders differ from the file's")
	}
}

// stamp returns a transaction's time in a form that sorts.
func stamp(t *testing.T, m *nats.Msg) string {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Cantus-Time"))
	if err != nil {
		t.Fatal(err)
	}
	return at.UTC().Format("2006-01-02T15:04:05.000000000")
}

// checkEntry compares one transaction with the step that it holds.
func checkEntry(t *testing.T, h *history, partition int, id uint64, m *nats.Msg) entry {
	t.Helper()
	stepID := m.Header.Get("Cantus-Msg-Id")
	i, ok := h.byID[stepID]
	if !ok {
		t.Fatalf("txid %d has the message id %q", id, stepID)
	}
	s := h.steps[i]
	e := entry{commit: s.commit, Msg: m, locks: strings.Split(m.Header.Get("Cantus-Write-Lock"), ",")}
	want := map[string]string{
		"Cantus-Txid":      strconv.FormatUint(id, 10),
		"Cantus-Partition": strconv.Itoa(partition),
		"Cantus-Kind":      "commit",
		"Nats-Msg-Id":      fmt.Sprintf("cantus.%d.%d", partition, id),
	}
	for key, value := range want {
		if got := m.Header.Get(key); got != value {
			t.Fatalf("txid %d: %s is %q, want %q", id, key, got, value)
		}
	}
	mark, err := strconv.ParseUint(m.Header.Get("Cantus-High-Water-Mark"), 10, 64)
	if err != nil || mark >= id {
		t.Fatalf("txid %d has the high-water mark %q", id, m.Header.Get("Cantus-High-Water-Mark"))
	}
	if string(m.Data) != string(s.payload) || !slices.Equal(e.locks, s.commit.locks()) {
		t.Fatalf("txid %d, commit %s: payload or locks differ from what was sent", id, stepID)
	}
	return e
}

func TestHistoryReplay(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	h := loadHistory(t)
	h = h.head(t, testkit.Sized(500, 4000, len(h.commits)))
	r := newReplay(t, h, n, 0)
	fedTo := dial(t, n.url)
	feed, err := fedTo.Conn.SubscribeSync("cantus.feed.0.commit")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(feed.SetPendingLimits(-1, -1), fedTo.Conn.Flush()); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := r.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	fed, healed := 0, 0
	for _, v := range r.views {
		fed, healed = fed+v.fed, healed+v.healed
	}
	t.Logf("%d transactions in %v, %d conflicts, %d applied from the feed and %d from reads",
		len(r.steps), time.Since(begin).Round(time.Millisecond), len(r.refusals), fed, healed)
	if r.resent > 0 {
		t.Errorf("%d requests went unanswered by a node that nobody touched", r.resent)
	}
	r.check(t)
	checkFeed(t, feed, r.drained(t))
	checkDigest(t, n, r.clients[0])
}

// checkFeed checks that a subscriber that followed from the beginning got
// everything that a read returns, in order.
func checkFeed(t *testing.T, feed *nats.Subscription, log []*nats.Msg) {
	t.Helper()
	for i, want := range log {
		got, err := feed.NextMsg(patience)
		if err != nil {
			t.Fatalf("feed, txid %d: %v", i+1, err)
		}
		if !maps.EqualFunc(got.Header, want.Header, slices.Equal) || !bytes.Equal(got.Data, want.Data) {
			t.Fatalf("fed\n%v %s\nbut txid %d reads\n%v %s", got.Header, got.Data, i+1, want.Header, want.Data)
		}
	}
}

// checkDigest stops the node and verifies its files: the digest of every
// partition must be the one that the node reported last.
func checkDigest(t *testing.T, n *node, c *workload.Client) {
	t.Helper()
	var digests []string
	for p := range 4 {
		digests = append(digests, mustInfo(t, c, p).Digest)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := cantus(t, "verify", n.dir)
	if code != 0 {
		t.Fatalf("cantus verify: exit %d\n%s%s", code, stdout, stderr)
	}
	rows := strings.Split(strings.TrimSpace(stdout), "\n")[1:]
	if len(rows) != len(digests) {
		t.Fatalf("cantus verify tells of %d partitions, want %d:\n%s", len(rows), len(digests), stdout)
	}
	for p, digest := range digests {
		// What it shows is the digest or its beginning.
		shows := func(field string) bool { return len(field) >= 12 && strings.HasPrefix(digest, field) }
		if len(digest) != 64 || !slices.ContainsFunc(strings.Fields(rows[p]), shows) {
			t.Errorf("partition %d had the digest %q; cantus verify says\n%s", p, digest, stdout)
		}
	}
}
