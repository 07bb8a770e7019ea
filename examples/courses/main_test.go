package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// However many enroll at once, no course has more students than places, and no
// student more courses than allowed.
func TestBothRulesHold(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	const courses, students, places = 5, 6, 4
	for i := range courses {
		if err := define(ctx, c, fmt.Sprint("c", i), places); err != nil {
			t.Fatal(err)
		}
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		taken  = map[string]int{}
		taking = map[string]int{}
	)
	for i := range courses {
		for j := range students {
			wg.Go(func() {
				course, student := fmt.Sprint("c", i), fmt.Sprint("s", j)
				err := enroll(ctx, c, course, student)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					taken[course]++
					taking[student]++
				case !errors.Is(err, errFull) && !errors.Is(err, errTooManyFor):
					t.Errorf("%s in %s: %v", student, course, err)
				}
			})
		}
	}
	wg.Wait()
	total := 0
	for course, n := range taken {
		if total += n; n > places {
			t.Errorf("course %s has %d students", course, n)
		}
	}
	for student, n := range taking {
		if n > maxCourses {
			t.Errorf("student %s takes %d courses", student, n)
		}
	}
	if most := students * maxCourses; total < most-2*maxCourses || total > most {
		t.Errorf("%d enrolments: %v, %v", total, taken, taking)
	}
}

func TestRules(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	for _, c := range []struct {
		what, course, with string
		want               error
	}{
		{"enroll", "go", "alice", errNoCourse},
		{"define", "go", "2", nil},
		{"define", "go", "3", errDefined},
		{"enroll", "go", "alice", nil},
		{"enroll", "go", "alice", errEnrolled},
		{"enroll", "go", "bob", nil},
		{"enroll", "go", "carol", errFull},
		{"define", "go", "two", errUsage},
		{"leave", "go", "alice", errUsage},
		{"define", "C*, part 2.", "1", nil}, // any text
		{"enroll", "C*, part 2.", "", nil},
		{"enroll", "C*, part 2.", "> bob", errFull},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{l.URL(), c.what, c.course, c.with}, &out); !errors.Is(err, c.want) {
			t.Errorf("%s %s %s: %v, want %v", c.what, c.course, c.with, err, c.want)
		}
	}
	if err := run(t.Context(), nil, nil); !errors.Is(err, errUsage) {
		t.Errorf("without arguments: %v", err)
	}
}
