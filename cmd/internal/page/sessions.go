package page

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of sessions.
const (
	maxSessions = 64
	sessionIdle = 15 * time.Minute // without a request or a stream
	maxLogins   = 4                // that are tried at a time
	loginQueue  = 16               // that wait for their turn
	failurePays = time.Second      // what a wrong login keeps its place for
	maxLogin    = 4096             // bytes of a login
)

// sessions are the viewers that are logged in, by the tokens that their pages
// have. A token is in no cookie: the browser would send one to every port of
// the machine, and with the requests of other sites.
type sessions struct {
	mu     sync.Mutex
	all    map[string]*session
	closed bool

	logins  chan struct{}
	waiting chan struct{}
	pause   time.Duration // failurePays
}

// session is one login. sessions.mu guards streams.
type session struct {
	viewer  Viewer
	idle    *time.Timer
	streams int
}

func newSessions() *sessions {
	return &sessions{
		all: map[string]*session{}, pause: failurePays,
		logins: make(chan struct{}, maxLogins), waiting: make(chan struct{}, loginQueue),
	}
}

// add takes in a viewer, and returns the token of its session, "" if there are
// too many.
func (s *sessions) add(v Viewer) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.all) >= maxSessions {
		return ""
	}
	token := rand.Text() + rand.Text()
	s.all[token] = &session{viewer: v, idle: time.AfterFunc(sessionIdle, func() { s.end(token) })}
	go func() {
		<-v.Done()
		s.end(token)
	}()
	return token
}

// use returns the viewer of a session, nil if there is none. The caller calls
// done when it needs the viewer no more.
func (s *sessions) use(token string) (v Viewer, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.all[token]
	if found == nil {
		return nil, nil
	}
	found.streams++
	found.idle.Stop()
	return found.viewer, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if found.streams--; found.streams == 0 && s.all[token] == found {
			found.idle.Reset(sessionIdle)
		}
	}
}

// end ends a session.
func (s *sessions) end(token string) {
	s.mu.Lock()
	found := s.all[token]
	delete(s.all, token)
	s.mu.Unlock()
	if found != nil {
		found.idle.Stop()
		found.viewer.Close()
	}
}

func (s *sessions) close() {
	s.mu.Lock()
	s.closed = true
	var tokens []string
	for token := range s.all {
		tokens = append(tokens, token)
	}
	s.mu.Unlock()
	for _, token := range tokens {
		s.end(token)
	}
}

// try calls login when it is its turn, and returns false if too many wait. A
// login that fails keeps its place for some time, so that passwords can't be
// tried fast.
func (s *sessions) try(ctx context.Context, login func() error) bool {
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
	default:
		return false
	}
	select {
	case s.logins <- struct{}{}:
		defer func() { <-s.logins }()
	case <-ctx.Done():
		return true
	}
	if err := login(); errors.Is(err, ErrCredentials) && s.pause > 0 {
		time.Sleep(s.pause)
	}
	return true
}

// token returns the token of a request's session.
func token(r *http.Request) string {
	t, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return t
}

// login opens a session. Without credentials it is that of an anonymous NATS
// client, if the server lets those in.
func (p *Page) login(w http.ResponseWriter, r *http.Request) {
	var c Credentials
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLogin))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil || r.Header.Get("Content-Type") != "application/json" {
		fail(w, http.StatusBadRequest, "a login is a JSON object with user and password, or token, or nothing")
		return
	}
	if c.anonymous() && proxied(r) {
		fail(w, http.StatusUnauthorized, "through a proxy, transactions are for users that log in")
		return
	}
	var v Viewer
	var err error
	inTime := p.sessions.try(r.Context(), func() error {
		v, err = p.opts.Source.Login(r.Context(), c)
		if c.anonymous() { // it guesses nothing
			return nil
		}
		return err
	})
	switch {
	case !inTime:
		fail(w, http.StatusTooManyRequests, "too many log in at the same time: try again")
	case errors.Is(err, ErrCredentials):
		if !c.anonymous() {
			p.opts.Logger.Warn("page: a login was refused", "user", c.User, "from", r.RemoteAddr)
		}
		fail(w, http.StatusUnauthorized, err.Error())
	case err != nil:
		fail(w, http.StatusServiceUnavailable, err.Error())
	case v == nil: // the request has ended
	default:
		p.begin(w, r, v)
	}
}

// begin answers a login that succeeded.
func (p *Page) begin(w http.ResponseWriter, r *http.Request, v Viewer) {
	t := p.sessions.add(v)
	if t == "" {
		v.Close()
		fail(w, http.StatusServiceUnavailable, "too many are logged in: log out elsewhere, or wait until a login has been idle for 15 minutes")
		return
	}
	if v.User() != "" {
		p.opts.Logger.Info("page: a user logged in", "user", v.User(), "from", r.RemoteAddr)
	}
	answer(w, http.StatusOK, map[string]string{"token": t, "user": v.User()})
}

func (p *Page) logout(w http.ResponseWriter, r *http.Request) {
	p.sessions.end(token(r))
	w.WriteHeader(http.StatusNoContent)
}

// notLoggedIn is what a request without a session is answered with.
const notLoggedIn = "not logged in, or the login has ended"
