package dcb_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// mostCourses is how many courses a student takes at most.
const mostCourses = 2

type enrolment struct {
	Course, Student string
	Places          int
}

func (e enrolment) courseLock() string  { return "course." + e.Course }
func (e enrolment) studentLock() string { return "student." + e.Student }

// school is the state of courses and students: of all of them, or of those that
// a query selects.
type school struct {
	places map[string]int
	taking map[[2]string]bool // by course and student
}

func (s school) apply(kind string, e enrolment) school {
	if s.places == nil {
		s = school{map[string]int{}, map[[2]string]bool{}}
	}
	switch kind {
	case "defined", "resized":
		s.places[e.Course] = e.Places
	case "enrolled":
		s.taking[[2]string{e.Course, e.Student}] = true
	case "left":
		delete(s.taking, [2]string{e.Course, e.Student})
	}
	return s
}

// count returns how many take a course, or are taken by a student.
func (s school) count(part int, name string) (n int) {
	for key := range s.taking {
		if key[part] == name {
			n++
		}
	}
	return n
}

// allows is the rule.
func (s school) allows(kind string, e enrolment) bool {
	places, defined := s.places[e.Course]
	takes := s.taking[[2]string{e.Course, e.Student}]
	switch kind {
	case "defined":
		return !defined
	case "resized":
		return defined && s.count(0, e.Course) <= e.Places
	case "enrolled":
		return defined && !takes && s.count(0, e.Course) < places && s.count(1, e.Student) < mostCourses
	}
	return takes
}

// attempt decides on an event, by no more than what the rule for it asks for.
func (e enrolment) attempt(ctx context.Context, c *client.Client, kind string) error {
	course, student := e.courseLock(), e.studentLock()
	locks := []string{course}
	var items []subjects.QueryItem
	switch kind {
	case "defined":
		items = []subjects.QueryItem{about([]string{"defined"}, course)}
	case "resized":
		items = []subjects.QueryItem{about([]string{"defined", "resized", "enrolled", "left"}, course)}
	case "enrolled":
		items = []subjects.QueryItem{about([]string{"defined", "resized", "enrolled", "left"}, course), about([]string{"enrolled", "left"}, student)}
		locks = append(locks, student)
	case "left":
		items = []subjects.QueryItem{about([]string{"enrolled", "left"}, course, student)}
		locks = append(locks, student)
	}
	return decide(ctx, c, items, school.apply, func(s school, req *client.Request) error {
		if !s.allows(kind, e) {
			return errRefused
		}
		return set(req, kind, e, locks...)
	})
}

// enrol has each client enrol a student in courses, leave some, and resize
// courses, for as long as more returns true.
func enrol(ctx context.Context, clients []*client.Client, o *outcomes, more func(n int) bool) {
	const courses, places = 3, 3
	for i := range courses {
		o.count(enrolment{Course: fmt.Sprint(i), Places: places}.attempt(ctx, clients[0], "defined"))
	}
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() {
			for n := 0; more(n); n++ {
				e := enrolment{Course: fmt.Sprint((i + n) % courses), Student: fmt.Sprint(i)}
				o.count(e.attempt(ctx, c, "enrolled"))
				if n%4 == 2 {
					o.count(e.attempt(ctx, c, "left"))
				}
				if n%3 == i%3 {
					o.count(enrolment{Course: e.Course, Places: places - 1 + n%3}.attempt(ctx, c, "resized"))
				}
			}
		})
	}
	running.Wait()
}

// checkSchool goes through the log after some decisions.
func checkSchool(t *testing.T, c *client.Client, o *outcomes) {
	t.Helper()
	var all school
	n := replay(t, c, func(kind string, e enrolment) bool {
		allowed := all.allows(kind, e)
		all = all.apply(kind, e)
		return allowed
	})
	if n != o.passed || o.refused == 0 {
		t.Errorf("%d transactions; %d decisions passed, and %d were refused", n, o.passed, o.refused)
	}
}

// A course has a number of places, and a student takes two courses at most.
func TestCourses(t *testing.T) {
	clients, o := newClients(t, 6), &outcomes{t: t}
	enrol(testkit.Soon(t), clients, o, func(n int) bool { return n < 9 })
	checkSchool(t, clients[0], o)
}

// The same on three nodes, while another one is made the leader.
func TestCoursesWhileLeadersChange(t *testing.T) {
	testkit.NotShort(t, "a cluster waits for elections")
	testkit.Parallel(t)
	nodes := openCluster(t, 3)
	clients, o := clientsOf(t, 6, nodes...), &outcomes{t: t}
	var (
		over    atomic.Bool
		running sync.WaitGroup
	)
	running.Go(func() {
		enrol(testkit.Soon(t), clients, o, func(int) bool { return !over.Load() })
	})
	defer running.Wait()
	defer over.Store(true)
	for _, to := range []string{"n2", "n3", "n1"} {
		transfer(t, nodes[0], to)
	}
	over.Store(true)
	running.Wait()
	checkSchool(t, clients[0], o)
}

// openCluster opens nodes n1, n2 and so on.
func openCluster(t *testing.T, count int) []*broker.Node {
	t.Helper()
	names, routes := make([]string, count), make([]string, count)
	for i := range count {
		names[i], routes[i] = fmt.Sprint("n", i+1), ports.Free(t)
	}
	nodes, errs := make([]*broker.Node, count), make([]error, count)
	var opening sync.WaitGroup
	for i := range count {
		dir := t.TempDir()
		opening.Go(func() {
			nodes[i], errs[i] = broker.Open(testkit.Soon(t), dir, broker.Options{
				Name: names[i], ClusterListen: routes[i], Routes: slices.Delete(slices.Clone(routes), i, i+1), Bootstrap: names, Partitions: 1,
			})
		})
	}
	opening.Wait()
	for i, n := range nodes {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		t.Cleanup(func() { _ = n.Close() })
	}
	return nodes
}

// transfer makes a node lead partition 0, and returns when it does.
func transfer(t *testing.T, by *broker.Node, to string) {
	t.Helper()
	nc, err := by.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var names subjects.Names
	testkit.Until(t, "the cluster takes the transfer to "+to, func() bool {
		var r subjects.AdminReply
		m, err := nc.Request(names.Admin("cluster", "transfer"), fmt.Appendf(nil, `{"partition":0,"to":%q}`, to), time.Second)
		return err == nil && json.Unmarshal(m.Data, &r) == nil && r.Done != ""
	})
	testkit.Until(t, to+" leads", func() bool {
		var r subjects.PartitionInfo
		m, err := nc.Request(names.PartitionInfo(0), nil, time.Second)
		return err == nil && json.Unmarshal(m.Data, &r) == nil && r.Leader == to
	})
}
