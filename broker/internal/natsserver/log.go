package natsserver

import (
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
)

// serverLogger passes the server's log on, and what it could not start for.
type serverLogger struct {
	log     *slog.Logger
	fatal   chan string // the first only
	repeats *loglimit.Repeats
}

func (l serverLogger) Noticef(format string, v ...any) {
	l.log.Debug("nats: " + fmt.Sprintf(format, v...))
}
func (l serverLogger) Warnf(format string, v ...any)  { l.warn(fmt.Sprintf(format, v...)) }
func (l serverLogger) Errorf(format string, v ...any) { l.warn(fmt.Sprintf(format, v...)) }

// numbers are what differs in a text that is said again and again: ports, and
// counts of connections and attempts.
var numbers = regexp.MustCompile(`[: ][0-9]+`)

// Of routes between nodes whose tokens differ: what the one that dials is told,
// and what the one that refuses says.
var (
	routeRefused = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ .*Route Error 'Authorization Violation'`)
	routeRefuses = regexp.MustCompile(`^(\S+:\d+) - rid:\d+ - authentication error`)
)

// routeHint says what the NATS server's text about a route means for a node, ""
// for other texts.
func routeHint(text string) string {
	const means = "it has another token, or none (--cluster-secret-file)"
	if m := routeRefused.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": %s refuses this node: %s", m[1], means)
	}
	if m := routeRefuses.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf(": this node refuses the one at %s: %s", m[1], means)
	}
	return ""
}

// warn logs a text, and the same one again once in a while: the server tries a
// route that is away, and says so, every second.
func (l serverLogger) warn(text string) {
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
