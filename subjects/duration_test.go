package subjects_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "5s": 5 * time.Second, "1.5s": 1500 * time.Millisecond, "1h30m": 90 * time.Minute, "10us": 10 * time.Microsecond,
		"10µs": 10 * time.Microsecond, "720h": 720 * time.Hour, "007ms": 7 * time.Millisecond,
	} {
		if got, err := subjects.ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "0", "5", "+1s", "-1s", "-0s", ".5s", "1.s", "s", "1 s", " 1s", "1s ", "1S", "d", "-1d", "1.5d", "9999999d", "1e3s", "1_000s", "1s-1s", "١s", "1s\n",
	} {
		if got, err := subjects.ParseDuration(text); err == nil || !strings.Contains(err.Error(), "500ms, 5s or 2m") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"30d": "such as 500ms, 5s or 2m; days are no unit: write 720h", "2w": "weeks are no unit: write 336h"} {
		if got, err := subjects.ParseDuration(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	if got, err := subjects.ParseDuration("9999999h"); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("too long: %v, %v", got, err)
	}
}
