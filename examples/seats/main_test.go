package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

func TestRules(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	for _, c := range []struct {
		args string
		want error
		out  string
	}{
		{"book hamlet alice A1 A2", nil, "booked: A1, A2 (transactions 1 to 2)\n"},
		{"book hamlet bob A2 A3", errTaken, ""},
		{"owner hamlet A3", nil, "nobody\n"},
		{"book macbeth bob A2 A3 A2", nil, "booked: A2, A3 (transactions 3 to 4)\n"},
		{"release hamlet bob A1", errNotTheirs, ""},
		{"release hamlet alice A1 A3", errNotTheirs, ""},
		{"release hamlet alice A2", nil, "released: A2 (transactions 5 to 5)\n"},
		{"book hamlet bob A2 A3", nil, "booked: A2, A3 (transactions 6 to 7)\n"},
		{"owner hamlet A2", nil, "bob\n"},
		{"owner hamlet A1", nil, "alice\n"},
		{"book hamlet carol", errUsage, ""},
		{"book hamlet carol" + strings.Repeat(" B1", maxSeats+1), errUsage, ""},
		{"owner hamlet", errUsage, ""},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{l.URL()}, strings.Fields(c.args)...), &out); !errors.Is(err, c.want) || out.String() != c.out {
			t.Errorf("%s: %v, %q", c.args, err, out.String())
		}
	}
}

// However many book at once, no seat is sold twice, and no booking gets a part.
func TestNoSeatIsSoldTwice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	const row = 12
	seat := func(i int) string { return fmt.Sprint("A", i) }
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		sold = map[string]string{}
	)
	for i := range 30 {
		wg.Go(func() {
			name := fmt.Sprint("p", i)
			some := []string{seat(i % row), seat((i + 1) % row), seat((i + 5) % row)}
			err := book(ctx, c, io.Discard, "hamlet", name, some)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !errors.Is(err, errTaken) {
				t.Errorf("%s: %v", name, err)
			}
			for _, s := range some {
				if err == nil && sold[s] != "" {
					t.Errorf("%s is %s's and %s's", s, sold[s], name)
				}
				if err == nil {
					sold[s] = name
				}
			}
		})
	}
	wg.Wait()
	for i := range row {
		var out bytes.Buffer
		want := sold[seat(i)]
		if want == "" {
			want = "nobody"
		}
		if err := owner(ctx, c, &out, "hamlet", seat(i)); err != nil || strings.TrimSpace(out.String()) != want {
			t.Errorf("%s is %q's, want %s: %v", seat(i), out.String(), want, err)
		}
	}
	if len(sold) == 0 {
		t.Error("nothing was sold")
	}
}
