package loglimit

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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

func TestATextThatKeepsComingIsAllowedLessAndLess(t *testing.T) {
	r, began, allowed := &Repeats{}, time.Now(), []time.Duration(nil)
	for at := time.Duration(0); at < 2*time.Hour; at += time.Second {
		if ok, _ := r.Allow("x", began.Add(at)); ok {
			allowed = append(allowed, at)
		}
	}
	if len(allowed) > 13 || allowed[1] != repeatInterval || allowed[len(allowed)-1]-allowed[len(allowed)-2] != maxRepeatInterval {
		t.Errorf("allowed at %v", allowed)
	}
	if ok, _ := r.Allow("x", began.Add(2*time.Hour+repeatInterval)); !ok {
		t.Error("it is not allowed after a pause")
	}
}

// A failover of many partitions logged a line for each.
func TestABurstIsTwoLines(t *testing.T) {
	var b Burst
	var lines []string
	add := func(kind string, partition int) {
		b.Add(kind, partition, func() { lines = append(lines, fmt.Sprint(kind, " ", partition)) },
			func(all []int) { lines = append(lines, fmt.Sprint(kind, " ", all)) })
	}
	for p := range 5 {
		add("leading", p)
	}
	add("ended", 7)
	add("ended", 8)
	b.Flush()
	add("ended", 9)
	b.Flush()
	if got, want := strings.Join(lines, "; "), "leading 0; ended 7; ended 8; leading [1 2 3 4]; ended 9"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What happens to one partition is logged in its order, so that the last line
// about it is how it is.
func TestABurstKeepsTheOrderOfAPartition(t *testing.T) {
	var b Burst
	var lines []string
	for _, event := range []struct {
		kind   string
		number int
	}{{"leading", 0}, {"leading", 1}, {"leading", 2}, {"ended", 1}, {"ended", 0}, {"leading", 0}} {
		b.Add(event.kind, event.number, func() { lines = append(lines, fmt.Sprint(event.kind, " ", event.number)) },
			func(all []int) { lines = append(lines, fmt.Sprint(event.kind, " ", all)) })
	}
	b.Flush()
	if got, want := strings.Join(lines, "; "), "leading 0; leading [1 2]; ended 1; ended 0; leading 0"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestABurstEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Burst
		var lines []string
		var mu sync.Mutex
		log := func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		}
		for p := range 3 {
			b.Add("leading", p, func() { log(fmt.Sprint(p)) }, func(all []int) { log(fmt.Sprint(all)) })
		}
		time.Sleep(burstTime + 1)
		synctest.Wait()
		b.Add("leading", 3, func() { log("3") }, nil)
		b.Flush()
		if got := strings.Join(lines, "; "); got != "0; [1 2]; 3" {
			t.Errorf("logged %s", got)
		}
	})
}
