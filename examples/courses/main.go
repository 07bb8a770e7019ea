// Courses enrolls students in courses, and keeps two rules that no single name
// stands for: a course has a number of places, and a student takes three
// courses at most.
//
//	go run ./examples/courses nats://127.0.0.1:4222 define go 2
//	go run ./examples/courses nats://127.0.0.1:4222 enroll go alice
//
// It has no database. Each decision reads the transactions that it depends on,
// and is appended unless there are more of them by then. However many run
// concurrently, both rules hold.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// maxCourses is how many courses a student takes at most.
const maxCourses = 3

// The refusals of the rules.
var (
	errNoCourse   = errors.New("there is no such course")
	errDefined    = errors.New("the course is defined already")
	errFull       = errors.New("the course is full")
	errEnrolled   = errors.New("the student takes the course already")
	errTooManyFor = fmt.Errorf("the student takes %d courses already", maxCourses)
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

var errUsage = errors.New("usage: courses URL define COURSE PLACES, or: courses URL enroll COURSE STUDENT")

func run(ctx context.Context, args []string, w io.Writer) error {
	if len(args) != 4 {
		return errUsage
	}
	places, err := strconv.Atoi(args[3])
	if args[1] != "enroll" && (args[1] != "define" || err != nil) {
		return errUsage
	}
	nc, err := nats.Connect(args[0], nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if args[1] == "define" {
		err = define(ctx, c, args[2], places)
	} else {
		err = enroll(ctx, c, args[2], args[3])
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "done")
	return err
}

// event is the payload of each transaction.
type event struct {
	Course  string `json:"course"`
	Places  int    `json:"places,omitempty"`
	Student string `json:"student,omitempty"`
}

// state is what a decision depends on.
type state struct {
	defined  bool
	places   int
	taken    int // places of the course
	courses  int // of the student
	enrolled bool
}

// after returns a function that folds a transaction into the state of a course
// and a student.
func after(course, student string) func(state, *client.Transaction) (state, error) {
	return func(s state, tx *client.Transaction) (state, error) {
		var e event
		if err := json.Unmarshal(tx.Payload, &e); err != nil {
			return s, err
		}
		switch {
		case tx.Kind == "defined":
			s.defined, s.places = true, e.Places
		case tx.Kind == "enrolled":
			if e.Course == course {
				s.taken++
			}
			if e.Student == student {
				s.courses++
			}
			s.enrolled = s.enrolled || e.Course == course && e.Student == student
		}
		return s, nil
	}
}

// The names of locks, which may be made of any text.
func courseLock(course string) string   { return "course." + subjects.Token(course) }
func studentLock(student string) string { return "student." + subjects.Token(student) }

// define makes a course, once.
func define(ctx context.Context, c *client.Client, course string, places int) error {
	query := []subjects.QueryItem{{Kinds: []string{"defined"}, Locks: []string{courseLock(course)}}}
	_, err := client.Decide(ctx, c, query, after(course, ""), func(s state, req *client.Request) error {
		if s.defined {
			return errDefined
		}
		req.AppendLock(courseLock(course))
		return set(req, "defined", event{Course: course, Places: places})
	}, client.DecideOptions{})
	return err
}

// enroll enrolls a student. The decision depends on what happened to the
// course, and on the other courses of the student.
func enroll(ctx context.Context, c *client.Client, course, student string) error {
	query := []subjects.QueryItem{
		{Kinds: []string{"defined", "enrolled"}, Locks: []string{courseLock(course)}},
		{Kinds: []string{"enrolled"}, Locks: []string{studentLock(student)}},
	}
	_, err := client.Decide(ctx, c, query, after(course, student), func(s state, req *client.Request) error {
		switch {
		case !s.defined:
			return errNoCourse
		case s.enrolled:
			return errEnrolled
		case s.taken >= s.places:
			return errFull
		case s.courses >= maxCourses:
			return errTooManyFor
		}
		req.AppendLock(courseLock(course), studentLock(student))
		return set(req, "enrolled", event{Course: course, Student: student})
	}, client.DecideOptions{MaxAttempts: 10_000})
	return err
}

func set(req *client.Request, kind string, e event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	req.Set(kind, data)
	return nil
}
