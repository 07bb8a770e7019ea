package broker

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// A node answers a probe as long as each of its loops does, and while it stops.
func TestProbe(t *testing.T) {
	n, nc := openOne(t, t.TempDir(), Options{})
	probe := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return n.Probe(ctx)
	}
	for _, l := range []*natslink.Link{n.conns.appends, n.conns.reads, n.conns.feeds} {
		if err := probe(patience); err != nil {
			t.Fatal(err)
		}
		reached, release := make(chan struct{}), make(chan struct{})
		id, err := l.Subscribe("test."+l.Name(), "", func(*natslink.Message) {
			close(reached)
			<-release
		})
		if err == nil {
			err = l.Flush(t.Context())
		}
		if err == nil {
			err = nc.Publish("test."+l.Name(), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		<-reached
		if err := probe(10 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the loop of %s is blocked, and the probe says %v", l.Name(), err)
		}
		close(release)
		if err := l.Unsubscribe(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := probe(patience); err != nil {
		t.Errorf("a node that has stopped: %v", err)
	}
}

// /livez fails if the loops do not answer in time. That the node is not ready
// is none of its business.
func TestLivez(t *testing.T) {
	for want, result := range map[int]error{http.StatusOK: nil, http.StatusServiceUnavailable: context.DeadlineExceeded} {
		h := httpHandler(newMetrics(), func() string { return "not yet" }, func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("the probe may take for ever")
			}
			return result
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/livez", nil))
		if w.Code != want {
			t.Errorf("the probe returns %v: status %d", result, w.Code)
		}
	}
}
