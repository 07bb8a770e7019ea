// Package testkit holds what the tests of several packages share: how long a
// test waits, which tier runs, and what must not be left behind.
//
// Tests come in three tiers. go test -short leaves out or shrinks what takes
// longest; it is for the minute between two edits. go test runs everything,
// parts of it as a sample. With CANTUS_LONG=1 in the environment the samples
// grow to full length.
package testkit

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Patience is how long a test waits for what must come. It only ends a test
// that would hang: no other outcome depends on it.
const Patience = 2 * time.Minute

// Soon returns a context that ends with the test, or after Patience.
func Soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Until polls until is reports true. It fails the test if that takes longer than
// Patience; what says what was awaited.
func Until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out after %v waiting: %s", Patience, what)
		}
	}
}

// long is the name of the variable that turns on the longest tier.
const long = "CANTUS_LONG"

// Long reports whether tests run at full length. Benchmarks and stress tests
// that take samples otherwise try everything then.
func Long() bool {
	v := os.Getenv(long)
	if v == "" {
		return false
	}
	is, err := strconv.ParseBool(v)
	if err != nil {
		panic(fmt.Sprintf("%s is %q: set it to 1, or not at all", long, v))
	}
	return is
}

// OnlyLong skips a test unless tests run at full length. The reason says what
// takes the time.
func OnlyLong(t testing.TB, reason string) {
	t.Helper()
	if !Long() {
		t.Skipf("left out without %s=1: %s", long, reason)
	}
}

// NotShort skips a test in short mode. The reason says what takes the time.
func NotShort(t testing.TB, reason string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("left out in short mode: %s", reason)
	}
}

// Parallel lets a test that waits more than it computes run beside others. At
// full length it runs alone, as its figures are quoted.
func Parallel(t *testing.T) {
	t.Helper()
	if !Long() {
		t.Parallel()
	}
}

// Sized returns how much a test does in each tier: less in short mode, more at
// full length.
func Sized[T any](short, usual, full T) T {
	switch {
	case Long():
		return full
	case testing.Short():
		return short
	}
	return usual
}

// AtOnce sets how many parallel tests run at the same time, unless the command
// line says it: more than there are processors, for tests that wait more than
// they compute. Call it from TestMain, before the tests run.
func AtOnce(n int) error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(n))
}

// Main runs a package's tests and fails if goroutines are left when they are
// over. Call it from TestMain. Badger's logger starts one that never ends.
func Main(m goleak.TestingM) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}
