package broker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// The NATS server says the same of a route that is away again and again.
func TestTheSameWarningIsLoggedOnceInAWhile(t *testing.T) {
	var log bytes.Buffer
	l := natsLogger{slog.New(slog.NewTextHandler(&log, nil)), nil, &repeats{}}
	for attempt := range 500 {
		l.Errorf("Error trying to connect to route (attempt %d): dial tcp 127.0.0.1:6223: connection refused", attempt)
		l.Warnf("127.0.0.1:%d - rid:%d - Router connection closed", 40_000+attempt, attempt)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines of 1000 are logged:\n%s", n, log.String())
	}
	r, now := &repeats{}, time.Now()
	for i := range 10 {
		if ok, _ := r.pass("x", now.Add(time.Duration(i)*time.Second)); ok != (i == 0) {
			t.Errorf("text %d passes: %t", i, ok)
		}
	}
	if ok, withheld := r.pass("x", now.Add(repeatEvery)); !ok || withheld != 9 {
		t.Errorf("after a while: %t, %d", ok, withheld)
	}
	for i := range 1000 {
		r.pass(strings.Repeat("y", i), now)
	}
	if len(r.all) > maxRepeats {
		t.Errorf("%d texts are remembered", len(r.all))
	}
}

// Nodes whose tokens differ say so, whichever of them dials.
func TestARefusedRouteIsExplained(t *testing.T) {
	var log bytes.Buffer
	l := natsLogger{slog.New(slog.NewTextHandler(&log, nil)), nil, &repeats{}}
	l.Errorf("127.0.0.1:6251 - rid:5 - Route Error 'Authorization Violation'")
	l.Errorf(`127.0.0.1:49952 - rid:12 - authentication error - User "cantus"`)
	l.Errorf(`127.0.0.1:49953 - cid:13 - authentication error - User "app"`)
	for _, want := range []string{"127.0.0.1:6251 refuses this node: it has another token, or none (--cluster-secret-file)",
		"this node refuses the one at 127.0.0.1:49952: it has another token, or none (--cluster-secret-file)"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in\n%s", want, log.String())
		}
	}
	if strings.Count(log.String(), "token") != 2 {
		t.Errorf("a client is no route:\n%s", log.String())
	}
}
