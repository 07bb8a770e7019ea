package natsserver

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
)

// While a node is down, the NATS server repeats its messages about the route.
func TestARepeatedWarningIsLoggedOncePerInterval(t *testing.T) {
	var log bytes.Buffer
	l := serverLogger{slog.New(slog.NewTextHandler(&log, nil)), nil, &loglimit.Repeats{}}
	for attempt := range 500 {
		l.Errorf("Error trying to connect to route (attempt %d): dial tcp 127.0.0.1:6223: connection refused", attempt)
		l.Warnf("127.0.0.1:%d - rid:%d - Router connection closed", 40_000+attempt, attempt)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d messages of 1000 are logged:\n%s", n, log.String())
	}
}

// If the tokens of two nodes differ, both log it, whichever of them dials.
func TestARefusedRouteIsExplained(t *testing.T) {
	var log bytes.Buffer
	l := serverLogger{slog.New(slog.NewTextHandler(&log, nil)), nil, &loglimit.Repeats{}}
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
		t.Errorf("a client is taken for a route:\n%s", log.String())
	}
}

// If the names of two clusters differ, a node of each logs it, in one line.
func TestARouteToAnotherClusterIsExplained(t *testing.T) {
	for _, texts := range [][]string{
		{`127.0.0.1:6251 - rid:5 - Rejecting connection, cluster name "bank" does not match "bank-2"`, "127.0.0.1:6251 - rid:5 - cluster name from remote server conflicts"},
		{`127.0.0.1:6251 - rid:5 - Route Error 'Rejecting connection, cluster name "bank" does not match "bank-2"'`},
	} {
		var log bytes.Buffer
		l := serverLogger{slog.New(slog.NewTextHandler(&log, nil)), nil, &loglimit.Repeats{}}
		for _, text := range texts {
			l.Errorf("%s", text)
		}
		if !strings.Contains(log.String(), "the node at 127.0.0.1:6251 is of a cluster with another name (--cluster-name)") || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%q is logged as %q", texts, log.String())
		}
	}
}
