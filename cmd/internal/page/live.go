package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// streamSlots bounds how many streams there are, of all and of each address.
type streamSlots struct {
	mu  sync.Mutex
	all int
	of  map[string]int
}

// take returns a function that gives the slot back, nil if there is none.
func (s *streamSlots) take(from string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxStreams || s.of[from] >= maxStreamsEach {
		return nil
	}
	s.all++
	s.of[from]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.of[from]--; s.of[from] == 0 {
			delete(s.of, from)
		}
	}
}

// live sends the status whenever it is known anew, and with "tail" in the query
// what happens in the log, as server-sent events. The last one is "end", with
// the reason.
func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	from, _, _ := net.SplitHostPort(r.RemoteAddr)
	release := p.streams.take(from)
	if release == nil {
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d pages may be open at a time, %d of one address: close another one", maxStreams, maxStreamsEach))
		return
	}
	defer release()
	var viewer Viewer
	var filter Filter
	if q := r.URL.Query(); q.Has("tail") {
		if why := p.withholds(r); why != "" {
			fail(w, http.StatusForbidden, why)
			return
		}
		v, done := p.sessions.use(token(r))
		if v == nil {
			fail(w, http.StatusUnauthorized, notLoggedIn)
			return
		}
		defer done()
		var err error
		if filter, err = parseFilter(q); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		viewer = v
	}
	s := &stream{w: w, rc: http.NewResponseController(w), slow: p.slow}
	if err := s.rc.SetReadDeadline(time.Time{}); err != nil { // the server's is for a whole request
		fail(w, http.StatusInternalServerError, "streams are not possible here")
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	if why := p.stream(r.Context(), s, viewer, filter); why != "" {
		s.end(why)
	}
}

// message is an event of a tail.
type message struct {
	event string
	data  any
}

// stream sends events until the stream ends, and returns why it does, "" if
// nobody can be told.
func (p *Page) stream(ctx context.Context, s *stream, viewer Viewer, filter Filter) string {
	tailing, stop := context.WithCancel(ctx)
	messages := make(chan message)
	var ended <-chan struct{}
	var tail sync.WaitGroup
	defer tail.Wait()
	defer stop()
	if viewer != nil {
		ended = viewer.Done()
		tail.Go(func() {
			viewer.Tail(tailing, filter, func(event string, data any) {
				select {
				case messages <- message{event, data}:
				case <-tailing.Done():
				}
			})
		})
	}
	defer p.status.watch()()
	for err := s.send("begin", map[string]bool{"full": p.opts.Full}); ; {
		switch {
		case errors.Is(err, errSlow):
			return err.Error()
		case err != nil:
			return ""
		}
		status, changed := p.status.now()
		if status != nil && !s.isLast(status) {
			err = s.sendStatus(status)
			continue
		}
		select {
		case <-ctx.Done():
			return "the node stops, or the connection has ended"
		case <-ended:
			return "the login has ended: the NATS server closed its connection, or it was logged out"
		case m := <-messages:
			err = s.send(m.event, m.data)
		case <-changed:
		case <-time.After(silentTime):
			err = s.write([]byte(":\n\n"))
		}
	}
}

// stream is an answer of server-sent events.
type stream struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	slow time.Duration
	last *byte // the status that was sent last
}

// errSlow is returned for a write that took too long.
var errSlow = errors.New("this browser is too slow, or was asleep: what happened meanwhile is not shown")

// isLast reports whether a status was the last one that was sent.
func (s *stream) isLast(status []byte) bool { return s.last == &status[0] }

func (s *stream) sendStatus(status []byte) error {
	s.last = &status[0]
	return s.write(slices.Concat([]byte("event: status\ndata: "), status, []byte("\n\n")))
}

func (s *stream) send(event string, data any) error {
	body, err := json.Marshal(data) // without line breaks
	if err != nil {
		return err
	}
	return s.write(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", event, body))
}

// write sends bytes. If the client takes them, but late, the error is errSlow.
func (s *stream) write(b []byte) error {
	began := time.Now()
	if err := s.rc.SetWriteDeadline(began.Add(deadTime)); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	if err := s.rc.Flush(); err != nil {
		return err
	}
	if time.Since(began) > s.slow {
		return errSlow
	}
	return nil
}

// end says why the stream ends.
func (s *stream) end(why string) { _ = s.send("end", map[string]string{"because": why}) }

// parseFilter decodes the filter of a tail.
func parseFilter(q url.Values) (f Filter, err error) {
	f.Kind, f.Lock = q.Get("kind"), q.Get("lock")
	for word := range strings.SplitSeq(q.Get("partitions"), ",") {
		if word == "" {
			continue
		}
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return f, fmt.Errorf("partition %q is not a number, such as 0", word)
		}
		f.Partitions = append(f.Partitions, int(n))
	}
	f.After = map[int]uint64{}
	for word := range strings.SplitSeq(q.Get("after"), ",") {
		if word == "" {
			continue
		}
		left, right, _ := strings.Cut(word, ":")
		p, err1 := strconv.ParseUint(left, 10, 16)
		txid, err2 := strconv.ParseUint(right, 10, 64)
		if err1 != nil || err2 != nil {
			return f, fmt.Errorf("position %q is not a partition and a txid, such as 0:812", word)
		}
		f.After[int(p)] = txid
	}
	return f, nil
}
