package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

func TestNoneIsLost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := cantustest.New(t, cantustest.Options{})
	var wg sync.WaitGroup
	const adders = 5
	for range adders {
		wg.Go(func() {
			if err := add(ctx, l.URL(), "visits", 2, io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var out bytes.Buffer
	if err := add(ctx, l.URL(), "visits", 1, &out); err != nil || out.String() != fmt.Sprintln("visits", 2*adders+1) {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestWrongArgumentsGetTheUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"url", "visits"}, {"url", "visits", "x"}, {"url", "visits", "1", "2"}} {
		if _, _, _, err := arguments(args); err == nil || !strings.HasPrefix(err.Error(), "usage: transact URL COUNTER AMOUNT") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
