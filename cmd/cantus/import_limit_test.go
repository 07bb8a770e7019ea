package main

import (
	"io"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// An import gives up when nobody has answered for some time. A refusal because
// of a limit is an answer, and says when to go on.
func TestAnImportWaitsForALimit(t *testing.T) {
	i := &importer{p: &program{errOut: io.Discard}, conn: newNATSConn("cantus", ""), since: time.Now().Add(-2 * importPatience)}
	limit := subjects.Errorf(subjects.Busy, "the namespace allows 5 transactions a second")
	limit.RetryAfter = 0.2
	var at []time.Time
	err := i.retry(t.Context(), func() error {
		if at = append(at, time.Now()); len(at) > 1 {
			return nil
		}
		return refusal(limit)
	})
	if err != nil || len(at) != 2 || at[1].Sub(at[0]) < limit.RetryDelay() {
		t.Errorf("%v, after attempts at %v", err, at)
	}
}
