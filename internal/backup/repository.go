package backup

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Repository is where a backup is.
type Repository struct {
	bucket  Bucket
	version string
	log     *slog.Logger
	now     func() time.Time
	writer  string    // of the manifests that it writes
	newest  *Manifest // as this process has last seen it; nil for not at all
	pruned  time.Time // when segments were last deleted
}

// Options are those of a repository. The zero value is the default.
type Options struct {
	// Version is that of the program, for manifests.
	Version string
	// Logger is for what can be done again later, such as deleting what is not
	// needed. Default: nothing is logged.
	Logger *slog.Logger
	// Now is for tests. Default: time.Now.
	Now func() time.Time
}

// New returns the repository in a bucket, which it closes.
func New(bucket Bucket, o Options) *Repository {
	r := &Repository{bucket: bucket, version: o.Version, log: o.Logger, now: o.Now, writer: rand.Text()[:16]}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// Open opens the repository in a directory, which is created when something is
// written, or in the bucket of a URL.
func Open(ctx context.Context, where string, o Options) (*Repository, error) {
	scheme, rest, isURL := strings.Cut(where, "://")
	switch name := strings.TrimLeft(rest, "/"); {
	case where == "":
		return nil, errors.New("the place of the backup is empty: write a directory, or a URL such as s3://NAME")
	case isURL && scheme == "file" && rest == "":
		return nil, errors.New("file:// names no directory: write one, such as file:///mnt/backup")
	case isURL && scheme != "file" && (name != rest || name == "" || name[0] == '?'):
		return nil, fmt.Errorf("%s names no bucket: write %s://NAME", where, scheme)
	}
	if !isURL || scheme == "file" {
		if isURL {
			where = rest
		}
		d, err := openDir(filepath.Clean(where))
		if err != nil {
			return nil, err
		}
		return New(d, o), nil
	}
	b, err := openCloud(ctx, where)
	if err != nil {
		return nil, err
	}
	return New(b, o), nil
}

// Close closes the repository.
func (r *Repository) Close() error { return r.bucket.Close() }

const (
	manifestPrefix = "manifest/"
	maxManifest    = 1 << 30
)

func manifestName(generation uint64) string {
	return fmt.Sprintf("%s%016d.json", manifestPrefix, generation)
}

// Generations returns those of the manifests that are there, newest last.
func (r *Repository) Generations(ctx context.Context) (all []uint64, err error) {
	objects, err := r.bucket.List(ctx, manifestPrefix)
	if err != nil {
		return nil, fmt.Errorf("list the manifests: %w", err)
	}
	for _, o := range objects {
		var g uint64
		if _, err := fmt.Sscanf(o.Name, manifestPrefix+"%d.json", &g); err == nil && o.Name == manifestName(g) {
			all = append(all, g)
		}
	}
	return all, nil
}

// Manifest reads the manifest of a generation.
func (r *Repository) Manifest(ctx context.Context, generation uint64) (*Manifest, error) {
	b, err := r.bucket.Get(ctx, manifestName(generation), maxManifest)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", manifestName(generation), err)
	}
	return decodeManifest(generation, b)
}

// Newest reads the newest manifest. The error is ErrNone if there is none. It
// wraps ErrDamaged if the newest one is damaged: an older one is never taken
// for it.
func (r *Repository) Newest(ctx context.Context) (*Manifest, error) {
	for missing := uint64(0); ; {
		all, err := r.Generations(ctx)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			return nil, ErrNone
		}
		newest := all[len(all)-1]
		m, err := r.Manifest(ctx, newest)
		switch {
		case !isMissing(err):
			return m, err
		case newest == missing:
			return nil, fmt.Errorf("%w: %s is listed, but missing", ErrDamaged, manifestName(newest))
		}
		missing = newest // there is one that is much newer
	}
}

// newestWhole is Newest for a reader: if the newest manifest is damaged,
// it returns the newest one that is whole, and why the newer ones are not.
func (r *Repository) newestWhole(ctx context.Context) (m *Manifest, damage error, err error) {
	all, err := r.Generations(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, g := range slices.Backward(all) {
		m, err := r.Manifest(ctx, g)
		if isMissing(err) {
			err = fmt.Errorf("%w: %s is missing", ErrDamaged, manifestName(g))
		}
		if !errors.Is(err, ErrDamaged) {
			return m, damage, err
		}
		damage = cmp.Or(damage, err)
	}
	return nil, nil, cmp.Or(damage, ErrNone)
}

// current reads the manifest that a run goes on from: one of generation 0 if
// there is none. Once this process has seen a backup, it wants the same one: a
// directory without it is what an unmount leaves.
func (r *Repository) current(ctx context.Context) (Manifest, error) {
	m, err := r.Newest(ctx)
	had := r.newest != nil && r.newest.Generation > 0
	switch {
	case errors.Is(err, ErrNone) && had:
		return Manifest{}, fmt.Errorf("%w: generation %d of the backup %s was here, and no manifest is now: is what holds it still mounted? "+
			"To begin a new backup here, start again", ErrNone, r.newest.Generation, r.newest.ID)
	case errors.Is(err, ErrNone):
		m = &Manifest{}
	case err != nil:
		return Manifest{}, err
	case had:
		if err := r.newest.sameBackup(m); err != nil {
			return Manifest{}, err
		}
	}
	r.saw(m)
	return *m, nil
}

// saw notes the newest manifest.
func (r *Repository) saw(m *Manifest) {
	r.newest = m
	if d, is := r.bucket.(*dir); is && m.Generation > 0 {
		d.begun = true
	}
}

// sameBackup returns an error if o is a manifest of another backup. One from
// before backups had ids may be any.
func (m *Manifest) sameBackup(o *Manifest) error {
	if m.ID == "" || m.ID == o.ID {
		return nil
	}
	return fmt.Errorf("%w: the backup %s was here, and now another one is, %s: is the right place mounted? "+
		"To go on with this one, start again", ErrOther, m.ID, o.ID)
}

// CheckPlace returns an error if there is no backup, and must not be one: the
// directory is used for something else, or what is left of a backup there would
// be deleted as unnamed. Call it before a backup begins.
func (r *Repository) CheckPlace(ctx context.Context) error {
	if all, err := r.Generations(ctx); err != nil || len(all) > 0 {
		return err
	}
	if d, is := r.bucket.(*dir); is {
		if err := d.checkNew(); err != nil {
			return err
		}
	}
	objects, err := r.bucket.List(ctx, "")
	if err != nil {
		return err
	}
	for _, o := range objects {
		if segmentForm.MatchString(o.Name) && r.now().Sub(o.Written) > keptTime {
			return fmt.Errorf("there are segments of a backup, such as %s, and no manifest: put its folder %s back, or begin another backup elsewhere", o.Name, manifestPrefix)
		}
	}
	return nil
}

// keptManifests is how many are kept.
const keptManifests = 10

// write stores the manifest that follows on m's generation. The error wraps
// fs.ErrExist if another process was first.
func (r *Repository) write(ctx context.Context, m Manifest) error {
	all, err := r.Generations(ctx)
	if err != nil {
		return err
	}
	if err := r.follows(ctx, &m, all); err != nil {
		return err
	}
	m.Format, m.Version, m.Taken = formatVersion, r.version, r.now().UTC()
	m.Writer = r.writer
	m.Generation++
	if m.ID == "" {
		m.ID = rand.Text()
	}
	b, err := m.encode()
	if err != nil {
		return err
	}
	if err := r.bucket.Put(ctx, manifestName(m.Generation), b, true); err != nil {
		return fmt.Errorf("write %s: %w", manifestName(m.Generation), err)
	}
	r.saw(&m)
	if err := r.prune(ctx, append(all, m.Generation)); err != nil {
		r.log.Warn("what the backup does not need any more is not deleted; a later run does so", "err", err)
	}
	return nil
}

// follows returns nil if m is what the newest of the generations became: a
// directory that was mounted since may have a manifest of the same generation.
func (r *Repository) follows(ctx context.Context, m *Manifest, generations []uint64) error {
	changed := fmt.Errorf("manifest %d: %w", m.Generation+1, fs.ErrExist)
	n := len(generations)
	switch {
	case n == 0 && m.Generation == 0:
		return nil
	case n == 0 || generations[n-1] != m.Generation:
		return changed
	}
	is, err := r.Manifest(ctx, m.Generation)
	if isMissing(err) {
		return changed
	}
	if err != nil {
		return err
	}
	if err := m.sameBackup(is); err != nil {
		return err
	}
	if is.Writer != m.Writer || !is.Taken.Equal(m.Taken) {
		return changed
	}
	return nil
}

const (
	// pruneEvery is how often segments are listed, to delete those that are not
	// needed.
	pruneEvery = time.Hour
	// keptTime is how long an object is kept that no manifest names.
	keptTime = 24 * time.Hour
)

// segmentForm matches the names of segments. Other files are not deleted.
var segmentForm = regexp.MustCompile(`^p[0-9]+/[0-9]{20}-[0-9]{20}-[0-9a-f]{8}\.seg$`)

// prune deletes old manifests, and now and then the segments that none of the
// others names.
func (r *Repository) prune(ctx context.Context, generations []uint64) error {
	for ; len(generations) > keptManifests; generations = generations[1:] {
		if err := r.bucket.Delete(ctx, manifestName(generations[0])); err != nil {
			return err
		}
	}
	now := r.now()
	if now.Sub(r.pruned) < pruneEvery {
		return nil
	}
	objects, err := r.bucket.List(ctx, "")
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, g := range generations {
		m, err := r.Manifest(ctx, g)
		if err != nil {
			return err // it may name anything
		}
		for _, p := range m.Partitions {
			for _, s := range p.Segments {
				needed[s.Name] = true
			}
		}
	}
	for _, o := range objects {
		if segmentForm.MatchString(o.Name) && !needed[o.Name] && now.Sub(o.Written) > keptTime {
			if err := r.bucket.Delete(ctx, o.Name); err != nil {
				return err
			}
		}
	}
	if d, is := r.bucket.(*dir); is {
		if err := d.deleteLeft(now.Add(-keptTime)); err != nil {
			return err
		}
	}
	r.pruned = now
	return nil
}

// object reads a segment's object.
func (r *Repository) object(ctx context.Context, s Segment) ([]byte, error) {
	b, err := r.bucket.Get(ctx, s.Name, s.Stored)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, fmt.Errorf("%w: %s: it has more than %d bytes", ErrDamaged, s.Name, s.Stored)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", s.Name, err)
	}
	return b, nil
}
