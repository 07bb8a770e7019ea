package natsserver

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
)

// serverLogger writes the NATS server's messages to the node's log. fatal
// receives the reason why the server can't start.
type serverLogger struct {
	log     *slog.Logger
	fatal   chan string // capacity 1; later messages are dropped
	repeats *loglimit.Repeats
}

func (l serverLogger) Noticef(format string, v ...any) {
	l.log.Debug("nats: " + fmt.Sprintf(format, v...))
}
func (l serverLogger) Warnf(format string, v ...any)  { l.warn(fmt.Sprintf(format, v...)) }
func (l serverLogger) Errorf(format string, v ...any) { l.warn(fmt.Sprintf(format, v...)) }

// numbers matches the parts that differ between repetitions of a message:
// ports, and the numbers of connections and attempts.
var numbers = regexp.MustCompile(`[: ][0-9]+`)

// Messages about a route between nodes whose tokens, or with a token the names
// of their clusters, differ: that of the node that dials, and that of the node
// that refuses the connection.
var (
	routeRefused = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ .*Route Error 'Authorization Violation'`)
	routeRefuses = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ - authentication error`)
)

// otherCluster matches the messages about a route between nodes of clusters
// with different names: that of the node that refuses the connection, and that
// of the node that dials. A third message repeats the first.
var otherCluster = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ - (?:Route Error ')?Rejecting connection, cluster name ".*" does not match`)

const otherClusterAgain = " - cluster name from remote server conflicts"

// routeHint explains a message about a refused route. It returns "" for other
// messages.
func routeHint(text string) string {
	const cause = "it has another token, or none (--cluster-secret-file), or another cluster name (--cluster-name)"
	if m := routeRefused.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": %s refuses this node: %s", m[1], cause)
	}
	if m := routeRefuses.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": this node refuses the one at %s: %s", m[1], cause)
	}
	if m := otherCluster.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": the node at %s is of a cluster with another name (--cluster-name); "+
			"if the cluster was recovered, the nodes that were lost must not start on their old directories (docs/recover.md)", m[1])
	}
	return ""
}

// warn logs a message as a warning, and limits its repetitions: while a node is
// down, the server tries the route to it, and logs that, every second.
func (l serverLogger) warn(text string) {
	if strings.HasSuffix(text, otherClusterAgain) {
		return
	}
	ok, withheld := l.repeats.Allow(numbers.ReplaceAllString(text, "#"), time.Now())
	text += routeHint(text)
	switch {
	case !ok:
	case withheld > 0:
		l.log.Warn("nats: "+text, "not_logged_before", withheld)
	default:
		l.log.Warn("nats: " + text)
	}
}

func (l serverLogger) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}
func (l serverLogger) Debugf(string, ...any) {}
func (l serverLogger) Tracef(string, ...any) {}
