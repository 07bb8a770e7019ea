package subjects_test

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Whatever an answer says, a client waits for a time that makes sense.
func TestRetryDelay(t *testing.T) {
	for seconds, want := range map[float64]time.Duration{
		0: 0, -3: 0, -1e300: 0, 0.021: 21 * time.Millisecond, 1e-300: 1, 75: 75 * time.Second, 7200: time.Hour, 1e300: time.Hour,
	} {
		if got := (&subjects.Error{RetryAfter: seconds}).RetryDelay(); got != want {
			t.Errorf("%v seconds are %v, want %v", seconds, got, want)
		}
	}
}
