package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// paper is a writer that fails once it contains what is wanted.
type paper struct {
	strings.Builder
	want string
	full func()
}

func (p *paper) Write(b []byte) (int, error) {
	n, err := p.Builder.Write(b)
	if p.String() == p.want {
		p.full()
	}
	return n, err
}

func TestAPartitionThatDoesNotExist(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	l := cantustest.New(t, cantustest.Options{Partitions: 2})
	if err := follow(ctx, l.URL(), 77, &paper{}); !errors.Is(err, client.ErrNoPartition) {
		t.Errorf("it ends with %v", err)
	}
}

func TestAllIsPrinted(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	l := cantustest.New(t, cantustest.Options{Partitions: 2})
	c := l.NewClient(t, client.Options{})
	for _, word := range []string{"one", "two"} {
		if _, err := c.Append(ctx, &client.Request{Partition: 1, Payload: []byte(word), Kind: "word"}); err != nil {
			t.Fatal(err)
		}
	}
	p := &paper{want: "1 word one\n2 word two\n", full: stop}
	if err := follow(ctx, l.URL(), 1, p); !errors.Is(err, context.Canceled) || p.String() != p.want {
		t.Errorf("%v; printed %q", err, p.String())
	}
}

func TestWrongArgumentsGetTheUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"url"}, {"url", "x"}, {"url", "-1"}, {"url", "0", "1"}} {
		if _, _, err := arguments(args); err == nil || !strings.HasPrefix(err.Error(), "usage: follow URL PARTITION") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
