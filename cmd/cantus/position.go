package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// position is where something is in a partition: a txid, or a time.
type position struct {
	txid txid // if at is not set
	at   time.Time
}

func (p *position) UnmarshalText(text []byte) error {
	if n, err := strconv.ParseUint(string(text), 10, 64); err == nil {
		*p = position{txid: txid(n)}
		return nil
	}
	var at moment
	if err := at.UnmarshalText(text); err != nil {
		return fmt.Errorf("%q is neither a transaction id nor a time: write a whole number, or %s", text, timeExamples)
	}
	*p = position{at: time.Time(at)}
	return nil
}

// String returns the position in a form that UnmarshalText accepts.
func (p position) String() string {
	if !p.at.IsZero() {
		return p.at.Format(time.RFC3339Nano)
	}
	return strconv.FormatUint(uint64(p.txid), 10)
}

// moment is a time. A date, and a time without a zone, are in UTC, as all times
// that the program prints.
type moment time.Time

const timeExamples = "a time such as 2026-11-01, 2026-11-01T08:30, 2026-11-01T08:30:00.5Z or 90m, which is 90 minutes ago"

// momentForms are what a time may look like, apart from what ParseTime accepts.
var momentForms = []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02T15:04Z07:00"}

// deadline is a moment that a duration says from now on, not back.
type deadline time.Time

const deadlineExamples = "a time such as 2026-11-01T08:30 or 90s, which is in 90 seconds, up to the year 2261"

func (d *deadline) UnmarshalText(text []byte) error {
	if in, err := subjects.ParseDuration(string(text)); err == nil {
		*d = deadline(time.Now().Add(in))
		return nil
	}
	var m moment
	if m.UnmarshalText(text) != nil {
		return fmt.Errorf("%q is not a time: write %s", text, deadlineExamples)
	}
	*d = deadline(m)
	return nil
}

func (m *moment) UnmarshalText(text []byte) error {
	s := strings.Replace(string(text), " ", "T", 1)
	if d, err := subjects.ParseDuration(s); err == nil {
		s = time.Now().Add(-d).UTC().Format(time.RFC3339Nano)
	}
	for _, form := range momentForms {
		if t, err := time.Parse(form, s); err == nil && !strings.Contains(s, ",") {
			s = t.UTC().Format(time.RFC3339Nano)
			break
		}
	}
	t, err := subjects.ParseTime(s)
	if err != nil {
		return fmt.Errorf("%q is not a time: write %s", text, timeExamples)
	}
	*m = moment(t.UTC())
	return nil
}
