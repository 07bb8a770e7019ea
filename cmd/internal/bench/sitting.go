package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// sitting is one run of bench: the servers that take part, and what they do.
type sitting struct {
	*Command
	workload *workload
	names    subjects.Names
	out      io.Writer
	errOut   io.Writer

	servers []*server // started here, ended by close
	temp    string    // removed by close
	filled  int       // makes the lock names of each fill its own
	notes   []string
}

func (s *sitting) run(ctx context.Context) error {
	if s.workload.Kind == startupLoad {
		return s.startup(ctx)
	}
	contestants, err := s.contestants(ctx)
	if err != nil {
		return err
	}
	samples := make([][]Sample, len(contestants))
	for i, c := range contestants {
		if err := s.chooseClient(ctx, c); err != nil {
			return err
		}
		samples[i] = make([]Sample, 0, s.workload.Rounds)
	}
	for n := range s.workload.Rounds {
		for i, c := range contestants {
			label := fmt.Sprintf("round %d/%d %s", n+1, s.workload.Rounds, c.name)
			sample, err := measure(ctx, label, c, c.clients[0], s.workload.Conns, s.workload.Size, s.workload.limits, s.errOut)
			if err != nil {
				return fmt.Errorf("%s: %w", label, err)
			}
			samples[i] = append(samples[i], sample)
		}
	}
	return s.print(s.report(contestants, samples))
}

// close ends what was started. Its servers have nothing to lose.
func (s *sitting) close() {
	for _, srv := range s.servers {
		if err := srv.stop(); err != nil && !errors.Is(err, ErrServer) {
			fmt.Fprintln(s.errOut, err)
		}
	}
	if s.temp != "" {
		if err := os.RemoveAll(s.temp); err != nil {
			fmt.Fprintln(s.errOut, err)
		}
	}
}

func (s *sitting) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.notes = append(s.notes, text)
	fmt.Fprintln(s.errOut, text)
}

// chooseClient leaves a contestant the quickest of its clients.
func (s *sitting) chooseClient(ctx context.Context, c *contestant) error {
	if len(c.clients) < 2 {
		return nil
	}
	lim := limits{warmUp: min(s.WarmUp, time.Second), duration: min(s.Duration, 3*time.Second)}
	if s.Count > 0 {
		lim = limits{count: s.Count}
	}
	rates := make([]float64, len(c.clients))
	best := 0
	for i, cl := range c.clients {
		sample, err := measure(ctx, "trying "+c.name+" with "+cl.name, c, cl, s.workload.Conns, 0, lim, s.errOut)
		if err != nil {
			return err
		}
		if rates[i] = sample.Rate; sample.Rate > rates[best] {
			best = i
		}
	}
	for i, cl := range c.clients {
		if i != best {
			s.note("%s: %s did %.0f/s and %s %.0f/s: the first is used",
				c.name, c.clients[best].name, rates[best], cl.name, rates[i])
		}
	}
	c.clients = c.clients[best : best+1]
	return nil
}

func (s *sitting) contestants(ctx context.Context) ([]*contestant, error) {
	node, err := s.node(ctx)
	if err != nil {
		return nil, err
	}
	all := []*contestant{node}
	if !slices.Contains(s.Vs, "jetstream") {
		return all, nil
	}
	syncs := s.VsSync
	if s.workload.Kind == readLoad {
		syncs = []string{"default"} // what was written how is all one to a read
	}
	for _, sync := range syncs {
		peers, err := s.jetstream(ctx, sync)
		if err != nil {
			return nil, err
		}
		all = append(all, peers...)
	}
	return all, nil
}

// node makes Cantus a contestant.
func (s *sitting) node(ctx context.Context) (*contestant, error) {
	srv, dir := &server{name: "cantus", url: s.Server}, ""
	if s.Server == "" {
		var err error
		if dir = s.Data; dir == "" {
			if dir, err = s.tempDir("cantus"); err != nil {
				return nil, err
			}
		}
		if srv, err = s.startNode(ctx, dir); err != nil {
			return nil, err
		}
	}
	c := &contestant{name: "cantus", server: srv, dir: dir}
	w := s.workload
	if w.Kind == fillLoad {
		// The fill itself is what is measured.
		w.limits = w.fillLimits()
		c.clients = []client{s.fillClient(srv)}
		return c, nil
	}
	if w.Fill > 0 {
		if err := s.fill(ctx, srv); err != nil {
			return nil, err
		}
	}
	if w.Kind == readLoad {
		return c, s.readClient(ctx, c)
	}
	keys := newPool("k", w.Keys)
	var marks []uint64
	c.prepare = func(ctx context.Context) (err error) {
		marks, err = highWaterMarks(ctx, srv.url, s.names, w.Partitions)
		return err
	}
	c.clients = []client{{"plain requests", func(conn int, ck *clock, fail func(error)) (worker, error) {
		return newLink(srv.url, w.InFlight, newCantusAppend(w, s.names, keys, marks, conn), ck, fail)
	}}}
	return c, nil
}

func (s *sitting) readClient(ctx context.Context, c *contestant) error {
	w := s.workload
	nc, err := connect(c.server.url, func(error) {})
	if err != nil {
		return err
	}
	defer nc.Close()
	infos := make([]subjects.PartitionInfo, w.Partitions)
	for p := range infos {
		m, err := request(ctx, nc, s.names.PartitionInfo(p), nil)
		if err != nil {
			return err
		}
		if json.Unmarshal(m.Data, &infos[p]) != nil || infos[p].Error != nil {
			return answerError(s.names.PartitionInfo(p), m)
		}
		if infos[p].HighWaterMark == 0 {
			return fmt.Errorf("%w: partition %d has nothing to read: --fill gives it something", ErrFlags, p)
		}
	}
	c.clients = []client{{"plain requests", func(conn int, ck *clock, fail func(error)) (worker, error) {
		p := conn % w.Partitions
		first := max(infos[p].FirstTxid, 1)
		return newLink(c.server.url, w.InFlight, newCantusRead(w, s.names, p, first, infos[p].HighWaterMark), ck, fail)
	}}}
	return nil
}

func (s *sitting) fillClient(srv *server) client {
	s.filled++
	run := strconv.FormatInt(time.Now().UnixNano(), 36) + strconv.Itoa(s.filled)
	return client{"batch messages", func(conn int, ck *clock, fail func(error)) (worker, error) {
		return newLink(srv.url, s.workload.InFlight, newCantusFill(s.workload, s.names, conn, run), ck, fail)
	}}
}

// fill appends what is to be there before anything is measured.
func (s *sitting) fill(ctx context.Context, srv *server) error {
	// A partial last batch is not made: the number is rounded down.
	c := &contestant{name: "cantus", server: srv}
	sample, err := measure(ctx, "fill", c, s.fillClient(srv), 2, 0, s.workload.fillLimits(), s.errOut)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	s.note("filled with %d transactions at %.0f/s; node at %d MB resident, %d MB of them anonymous",
		sample.Done, sample.Rate, sample.RSS>>20, sample.Anon>>20)
	return nil
}

// jetstream makes JetStream with a sync setting one or two contestants: with
// a condition, which is the nearest to a write lock, and plain.
func (s *sitting) jetstream(ctx context.Context, sync string) ([]*contestant, error) {
	dir, err := s.tempDir("jetstream-" + sync)
	if err != nil {
		return nil, err
	}
	srv, err := s.startJetstream(ctx, sync, dir)
	if err != nil {
		return nil, err
	}
	w := s.workload
	if w.Kind == readLoad {
		c, err := s.streamRead(ctx, srv, dir)
		return []*contestant{c}, err
	}
	var all []*contestant
	for _, expected := range []bool{false, true} {
		if expected && w.Locks == 0 {
			continue
		}
		name := "plain"
		if expected {
			name = "expected"
		}
		st, err := openStream(ctx, srv.url, name, expected, w.Keys)
		if err != nil {
			return nil, err
		}
		c := &contestant{name: srv.name + " " + name, server: srv, dir: dir, clients: s.streamClients(srv.url, st)}
		all = append(all, c)
	}
	return all, nil
}

func (s *sitting) streamClients(url string, st *stream) []client {
	w := s.workload
	plain := client{"plain requests", func(conn int, ck *clock, fail func(error)) (worker, error) {
		return newLink(url, w.InFlight, newStreamAppend(st, w.Size, conn), ck, fail)
	}}
	golang := client{"js.PublishMsgAsync", func(conn int, ck *clock, fail func(error)) (worker, error) {
		return newAsyncWorker(url, w.InFlight, newStreamAppend(st, w.Size, conn), ck, fail)
	}}
	if w.InFlight == 1 {
		golang = client{"js.PublishMsg", func(conn int, ck *clock, fail func(error)) (worker, error) {
			return newSyncWorker(url, newStreamAppend(st, w.Size, conn), ck, fail)
		}}
	}
	switch s.VsClient {
	case "plain":
		return []client{plain}
	case "go":
		return []client{golang}
	}
	return []client{plain, golang}
}

// streamRead fills a stream and makes reading it a contestant.
func (s *sitting) streamRead(ctx context.Context, srv *server, dir string) (*contestant, error) {
	w := s.workload
	st, err := openStream(ctx, srv.url, "read", false, 0)
	if err != nil {
		return nil, err
	}
	c := &contestant{name: srv.name, server: srv, dir: dir}
	filler := client{"plain requests", func(conn int, ck *clock, fail func(error)) (worker, error) {
		return newLink(srv.url, 256, newStreamAppend(st, w.Size, conn), ck, fail)
	}}
	fill := max(w.Fill, 1)
	if _, err := measure(ctx, "fill "+srv.name, c, filler, 8, 0, limits{count: fill, duration: time.Hour}, s.errOut); err != nil {
		return nil, fmt.Errorf("fill %s: %w", srv.name, err)
	}
	reader := func(name string, push bool) client {
		return client{name, func(_ int, ck *clock, fail func(error)) (worker, error) {
			return newStreamReader(srv.url, st.name, uint64(fill), push, ck, fail)
		}}
	}
	pull, push := reader("pull ordered consumer", false), reader("push ordered consumer", true)
	switch s.VsClient {
	case "pull":
		c.clients = []client{pull}
	case "push":
		c.clients = []client{push}
	default:
		c.clients = []client{pull, push}
	}
	return c, nil
}
