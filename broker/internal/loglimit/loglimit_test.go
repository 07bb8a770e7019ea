package loglimit

import (
	"strings"
	"testing"
	"time"
)

func TestATextIsAllowedOncePerInterval(t *testing.T) {
	r, now := &Repeats{}, time.Now()
	for i := range 10 {
		if ok, _ := r.Allow("x", now.Add(time.Duration(i)*time.Second)); ok != (i == 0) {
			t.Errorf("use %d is allowed: %t", i, ok)
		}
	}
	if ok, withheld := r.Allow("x", now.Add(repeatInterval)); !ok || withheld != 9 {
		t.Errorf("after the interval: %t, %d", ok, withheld)
	}
	for i := range 1000 {
		r.Allow(strings.Repeat("y", i), now)
	}
	if len(r.all) > maxRepeats {
		t.Errorf("%d texts are kept", len(r.all))
	}
}
