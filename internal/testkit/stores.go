//go:build stores

package testkit

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://

	"github.com/cantuslog/cantus/internal/ports"
)

// Store is a server of an object store, which keeps its objects in files. It
// has a bucket named "bucket".
type Store struct {
	// Env are the variables by which a client finds the server and its
	// credentials. WrongEnv has credentials that the server refuses, and
	// Refusal is in its answer; both are empty if it takes any. Each of Readers
	// has other credentials, with which a client can list and read.
	Env, WrongEnv []string
	Refusal       string
	Readers       [][]string

	tb      testing.TB
	dir     string
	address string
	url     string // of a bucket, with verbs for its name, the address and the prefix
	gently  bool   // it loses objects if it is killed
	command func() *exec.Cmd
	cmd     *exec.Cmd
}

// Stores are the object stores that a backup may be in.
var Stores = []struct {
	Name  string
	start func(*Store)
}{
	{"S3", startS3},
	{"Google", startGoogle},
	{"Azure", startAzure},
}

// StartStore starts the server of a store. It is stopped when the test ends.
// Its Env is in this process's environment from then on.
func StartStore(tb testing.TB, name string) *Store {
	tb.Helper()
	s := &Store{tb: tb, dir: tb.TempDir(), address: ports.Free(tb)}
	for _, store := range Stores {
		if store.Name == name {
			store.start(s)
		}
	}
	for _, variable := range s.Env {
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil { // for nodes; tests that run in parallel have no Setenv
			tb.Fatal(err)
		}
	}
	tb.Cleanup(s.Stop)
	s.Start()
	if name == "Azure" {
		s.createContainer()
	}
	return s
}

func startS3(s *Store) {
	program := s.build("versitygw")
	s.makeFolder()
	s.Env = []string{"AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=us-east-1"}
	s.WrongEnv, s.Refusal = []string{"AWS_SECRET_ACCESS_KEY=wrong"}, "SignatureDoesNotMatch"
	s.url = "s3://%s?endpoint=http://%s&use_path_style=true&prefix=%s/"
	s.command = func() *exec.Cmd {
		cmd := exec.Command(program, "--port", s.address, "--quiet", "posix", s.dir)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=key", "ROOT_SECRET_KEY=secret")
		return cmd
	}
}

func startGoogle(s *Store) {
	program := s.build("fake-gcs-server")
	s.makeFolder()
	s.Env = []string{"STORAGE_EMULATOR_HOST=" + s.address}
	s.url = "gs://%s?prefix=%[3]s/"
	s.command = func() *exec.Cmd {
		host, port, _ := net.SplitHostPort(s.address)
		return exec.Command(program, "-scheme", "http", "-host", host, "-port", port, "-public-host", s.address,
			"-backend", "filesystem", "-filesystem-root", s.dir)
	}
}

func startAzure(s *Store) {
	program := filepath.Join(s.tools(), "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if _, err := os.Stat(program); err != nil {
		s.tb.Fatalf("Azurite is not installed: make stores does so (%v)", err)
	}
	s.Env = []string{"AZURE_STORAGE_ACCOUNT=cantus", "AZURE_STORAGE_KEY=" + azureKey("secret")}
	s.WrongEnv, s.Refusal = []string{"AZURE_STORAGE_KEY=" + azureKey("wrong")}, "AuthorizationFailure"
	s.url = "azblob://%s?domain=%s&protocol=http&localemu=true&prefix=%s/"
	s.gently = true
	s.command = func() *exec.Cmd {
		host, port, _ := net.SplitHostPort(s.address)
		// It does not know the newest version of the protocol, which the client
		// asks for.
		cmd := exec.Command("node", program, "--blobHost", host, "--blobPort", port, "--location", s.dir,
			"--skipApiVersionCheck", "--disableTelemetry", "--silent")
		cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS=cantus:"+azureKey("secret"))
		return cmd
	}
}

func azureKey(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// tools returns the folder that says which servers there are.
func (s *Store) tools() string {
	s.tb.Helper()
	root, err := exec.CommandContext(s.tb.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		s.tb.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(root)), ".ci", "stores")
}

// build builds a server, and returns its path.
func (s *Store) build(name string) string {
	s.tb.Helper()
	build := exec.CommandContext(s.tb.Context(), "go", "tool", "-n", name)
	build.Dir = s.tools()
	build.Env = append(os.Environ(), "PWD="+build.Dir)
	var errs bytes.Buffer
	build.Stderr = &errs
	path, err := build.Output()
	if err != nil {
		s.tb.Fatalf("build %s: %v\n%s", name, err, &errs)
	}
	return strings.TrimSpace(string(path))
}

// makeFolder makes the bucket of a server whose buckets are folders.
func (s *Store) makeFolder() {
	s.tb.Helper()
	if err := os.Mkdir(filepath.Join(s.dir, "bucket"), 0o700); err != nil {
		s.tb.Fatal(err)
	}
}

// createContainer makes the bucket of Azure, and credentials for it.
func (s *Store) createContainer() {
	s.tb.Helper()
	b := s.open("")
	defer b.Close()
	var c *container.Client
	if !b.As(&c) {
		s.tb.Fatal("this is no container of Azure")
	}
	if _, err := c.Create(s.tb.Context(), nil); err != nil {
		s.tb.Fatal(err)
	}
	signed, err := c.GetSASURL(sas.ContainerPermissions{List: true, Read: true}, time.Now().Add(time.Hour), nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	_, token, _ := strings.Cut(signed, "?")
	account := fmt.Sprintf("AccountName=cantus;AccountKey=%s;BlobEndpoint=http://%s/cantus", azureKey("secret"), s.address)
	s.Readers = [][]string{
		{"AZURE_STORAGE_KEY=", "AZURE_STORAGE_SAS_TOKEN=" + token},
		{"AZURE_STORAGE_KEY=", "AZURE_STORAGE_CONNECTION_STRING=" + account},
	}
}

func (s *Store) open(prefix string) *blob.Bucket {
	s.tb.Helper()
	b, err := blob.OpenBucket(s.tb.Context(), s.URL(prefix))
	if err != nil {
		s.tb.Fatal(err)
	}
	return b
}

// Start starts the server again after Stop.
func (s *Store) Start() {
	s.tb.Helper()
	s.cmd = s.command()
	s.cmd.Stdout, s.cmd.Stderr = io.Discard, io.Discard
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("tcp", s.address)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.Stop()
			s.tb.Fatalf("the server does not listen: %v", err)
		}
		select {
		case <-s.tb.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Stop kills the server, or terminates it if it would lose objects.
func (s *Store) Stop() {
	if s.gently {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
	} else {
		_ = s.cmd.Process.Kill()
	}
	_ = s.cmd.Wait()
}

// URL returns the URL of the bucket, below a prefix.
func (s *Store) URL(prefix string) string { return s.URLOf("bucket", prefix) }

// URLOf returns the URL of a bucket, which need not exist.
func (s *Store) URLOf(bucket, prefix string) string {
	return fmt.Sprintf(s.url, bucket, s.address, prefix)
}

// Flip flips a bit in the file that has an object.
func (s *Store) Flip(prefix, object string) {
	s.tb.Helper()
	b := s.open(prefix)
	defer b.Close()
	data, err := b.ReadAll(s.tb.Context(), object)
	if err != nil {
		s.tb.Fatal(err)
	}
	found := errors.New("found")
	err = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		file, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(file, data)
		if at < 0 {
			return nil
		}
		file[at+len(data)/2] ^= 1
		return cmp.Or(os.WriteFile(path, file, 0o600), found)
	})
	if !errors.Is(err, found) {
		s.tb.Fatalf("no file has the object %s: %v", object, err)
	}
}
