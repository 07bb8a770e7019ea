package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// dir is a Bucket in a directory. The library for object stores has one too,
// which does not sync what it writes, and lets two processes write the same new
// object.
type dir struct {
	root  string
	begun bool // a backup is there, and where it should be otherwise, nothing is written
}

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".tmp-"

// openDir returns a directory, which need not exist.
func openDir(root string) (*dir, error) {
	info, err := os.Stat(root)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is a file", root)
	}
	if isMissing(err) {
		err = nil
	}
	return &dir{root: root}, err
}

// ownEntries match what a new backup may find in its directory: what one that
// was interrupted has left, hidden files, and what a new file system has.
var ownEntries = regexp.MustCompile(`^(manifest|p[0-9]+|\..*|lost\+found)$`)

// checkNew returns an error if a backup must not begin in the directory: it is
// in a node's data directory, or has other files.
func (d *dir) checkNew() error {
	path, err := filepath.Abs(d.root)
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(path, "cantus.json")); err == nil {
			return fmt.Errorf("%s is a node's data directory, or in one: name a directory of its own, on another disk", d.root)
		}
		parent := filepath.Dir(path)
		if parent == path {
			break
		}
		path = parent
	}
	entries, err := os.ReadDir(d.root)
	if isMissing(err) {
		return nil
	}
	for _, e := range entries {
		if !ownEntries.MatchString(e.Name()) {
			return fmt.Errorf("%s has no backup, but other files, such as %s: name an empty directory, or one that does not exist yet", d.root, e.Name())
		}
	}
	return err
}

func (d *dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

func (d *dir) Put(_ context.Context, name string, data []byte, mustBeNew bool) (err error) {
	path := d.path(name)
	folder := filepath.Dir(path)
	if err := d.makeRoot(); err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.CreateTemp(folder, tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // unless it was renamed
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if mustBeNew {
		err = publish(f.Name(), path)
	} else {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return errors.Join(syncDir(folder), syncDir(d.root))
}

// makeRoot makes the directory of a new backup. That of a backup that has begun
// is not made again, nor filled: it was moved away, or what holds it is no
// longer mounted.
func (d *dir) makeRoot() error {
	if d.begun {
		if _, err := os.Stat(d.path(manifestPrefix)); err != nil {
			return fmt.Errorf("the backup is no longer there: is what holds it still mounted? %w", err)
		}
		return nil
	}
	if _, err := os.Stat(d.root); !isMissing(err) {
		return nil
	}
	if err := os.MkdirAll(d.root, 0o777); err != nil {
		return err
	}
	return syncDir(filepath.Dir(d.root))
}

// publish gives a file the name of a new one, and fails if there is one. Where
// the file system has no hard links, two processes that do so at the same
// moment may both succeed.
func publish(temp, path string) error {
	err := os.Link(temp, path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	return os.Rename(temp, path)
}

func syncDir(path string) error {
	if runtime.GOOS == "windows" { // directories can't be synced there
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *dir) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

// readLimited reads r to its end, which has to be within limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errTooLarge
	}
	return b, err
}

// ownFolders match the folders in which a backup has its objects.
var ownFolders = regexp.MustCompile(`^(manifest|p[0-9]+)$`)

// List looks only into the folders of a backup: a process may not be allowed to
// read others, such as lost+found. It follows symbolic links, as Get does: the
// directory may be one, or a folder that was moved to another disk.
func (d *dir) List(_ context.Context, prefix string) (all []Object, err error) {
	folders := []string{strings.TrimSuffix(prefix, "/")}
	if prefix == "" {
		if folders, err = d.folders(); err != nil {
			return nil, err
		}
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(d.path(folder))
		if err != nil && !isMissing(err) {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), tempPrefix) {
				continue
			}
			name := folder + "/" + e.Name()
			info, err := os.Stat(d.path(name))
			switch {
			case isMissing(err), err == nil && info.IsDir(): // it was deleted meanwhile, or is no object
			case err != nil:
				return nil, err
			default:
				all = append(all, Object{name, info.Size(), info.ModTime()})
			}
		}
	}
	slices.SortFunc(all, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// folders returns those that may have objects.
func (d *dir) folders() (all []string, err error) {
	entries, err := os.ReadDir(d.root)
	if isMissing(err) {
		return nil, nil
	}
	for _, e := range entries {
		if !ownFolders.MatchString(e.Name()) {
			continue
		}
		if info, err := os.Stat(d.path(e.Name())); err == nil && info.IsDir() {
			all = append(all, e.Name())
		}
	}
	return all, err
}

// deleteLeft deletes files that were being written before a time, and were left
// by a process that was killed.
func (d *dir) deleteLeft(before time.Time) error {
	folders, err := d.folders()
	if err != nil {
		return err
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(d.path(folder))
		if err != nil && !isMissing(err) {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || !strings.HasPrefix(e.Name(), tempPrefix) || !info.ModTime().Before(before) {
				continue
			}
			if err := os.Remove(d.path(folder + "/" + e.Name())); err != nil && !isMissing(err) {
				return err
			}
		}
	}
	return nil
}

func (d *dir) Delete(_ context.Context, name string) error {
	if err := os.Remove(d.path(name)); err != nil && !isMissing(err) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func (d *dir) Close() error { return nil }
