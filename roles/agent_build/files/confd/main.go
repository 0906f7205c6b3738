// confd renders a node's configuration from the platform's metadata. It stands in for the platform's own confd, which
// is on no package index: it reads the same template resources and templates, and speaks metad's long poll.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/BurntSushi/toml"
)

// retry is the pause after metad did not answer; poll is longer than any of its long polls.
const (
	retry = 2 * time.Second
	poll  = 10 * time.Minute
)

// resource is one file of conf.d. Owner and mode default to root and 0644, as in confd.
type resource struct {
	Src, Dest string
	Keys      []string
	UID, GID  int
	Mode      string
	ReloadCmd string `toml:"reload_cmd"`
}

// values are the leaves of the metadata: absolute key below the prefix to value.
type values map[string]string

func main() {
	log.SetFlags(0)
	log.SetPrefix("confd: ")
	onetime := flag.Bool("onetime", false, "render once and end")
	node := flag.String("node", "http://metadata", "address of metad")
	prefix := flag.String("prefix", "/self", "where the node's metadata begins")
	dir := flag.String("confdir", "/etc/confd", "holds conf.d and templates")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Printf("unknown argument %q", flag.Arg(0))
		os.Exit(2)
	}
	version, failed := "", false
	for {
		data, now, err := fetch(*node+*prefix, version)
		if err != nil {
			log.Print(err)
			if *onetime {
				os.Exit(1)
			}
			time.Sleep(retry)
			continue
		}
		version = now
		failed = !renderAll(*dir, data)
		if *onetime {
			break
		}
	}
	if failed {
		os.Exit(1)
	}
}

// fetch returns what metad holds, as soon as it differs from the given version, and its version.
func fetch(url, version string) (values, string, error) {
	if version != "" {
		url += "?wait=true&prev_version=" + version
	}
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	request.Header.Set("Accept", "application/json")
	response, err := (&http.Client{Timeout: poll}).Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s: %s", url, response.Status)
	}
	var tree interface{}
	decoder := json.NewDecoder(response.Body)
	decoder.UseNumber()
	if err := decoder.Decode(&tree); err != nil {
		return nil, "", fmt.Errorf("%s: %w", url, err)
	}
	found := values{}
	found.add("", tree)
	return found, response.Header.Get("X-Metad-Version"), nil
}

func (v values) add(key string, tree interface{}) {
	if branch, ok := tree.(map[string]interface{}); ok {
		for name, below := range branch {
			v.add(key+"/"+name, below)
		}
		return
	}
	v[key] = fmt.Sprint(tree)
}

// only keeps what a resource's keys cover.
func (v values) only(keys []string) values {
	found := values{}
	for key, value := range v {
		for _, wanted := range keys {
			wanted = "/" + strings.Trim(wanted, "/")
			if wanted == "/" || key == wanted || strings.HasPrefix(key, wanted+"/") {
				found[key] = value
			}
		}
	}
	return found
}

// functions are those of confd that the templates use, with its meanings.
func (v values) functions() template.FuncMap {
	return template.FuncMap{
		"getv": func(key string, fallback ...string) (string, error) {
			if value, ok := v[key]; ok {
				return value, nil
			}
			if len(fallback) > 0 {
				return fallback[0], nil
			}
			return "", fmt.Errorf("key does not exist: %s", key)
		},
		"exists": func(key string) bool { _, ok := v[key]; return ok },
		"ls": func(dir string) []string {
			dir = strings.TrimSuffix(dir, "/") + "/"
			names := map[string]bool{}
			for key := range v {
				if strings.HasPrefix(key, dir) {
					names[strings.SplitN(key[len(dir):], "/", 2)[0]] = true
				}
			}
			found := []string{}
			for name := range names {
				found = append(found, name)
			}
			sort.Strings(found)
			return found
		},
	}
}

func renderAll(dir string, data values) bool {
	files, err := filepath.Glob(filepath.Join(dir, "conf.d", "*.toml"))
	if err != nil {
		log.Print(err)
		return false
	}
	well := true
	for _, file := range files {
		if err := render(file, filepath.Join(dir, "templates"), data); err != nil {
			log.Printf("%s: %v", file, err)
			well = false
		}
	}
	return well
}

func render(file, templates string, data values) error {
	var content struct{ Template resource }
	if _, err := toml.DecodeFile(file, &content); err != nil {
		return err
	}
	one := content.Template
	if one.Mode == "" {
		one.Mode = "0644"
	}
	mode, err := strconv.ParseUint(one.Mode, 8, 12)
	if err != nil {
		return fmt.Errorf("mode %q is not octal", one.Mode)
	}
	seen := data.only(one.Keys)
	parsed, err := template.New(one.Src).Funcs(seen.functions()).ParseFiles(filepath.Join(templates, one.Src))
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, nil); err != nil {
		return err
	}
	if one.same(text.Bytes(), os.FileMode(mode)) {
		return nil
	}
	staged, err := one.stage(text.Bytes(), os.FileMode(mode))
	if err != nil {
		return err
	}
	defer os.Remove(staged)
	if err := os.Rename(staged, one.Dest); err != nil {
		return err
	}
	log.Printf("wrote %s", one.Dest)
	if one.ReloadCmd != "" {
		if err := run(one.ReloadCmd); err != nil {
			return fmt.Errorf("reload_cmd: %w", err)
		}
	}
	return nil
}

// same says whether the file has this content, owner and mode.
func (r resource) same(text []byte, mode os.FileMode) bool {
	info, err := os.Lstat(r.Dest)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != mode {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != r.UID || int(owner.Gid) != r.GID {
		return false
	}
	now, err := os.ReadFile(r.Dest)
	return err == nil && bytes.Equal(now, text)
}

// stage writes the file beside its place; nobody else can read it before its mode is set.
func (r resource) stage(text []byte, mode os.FileMode) (string, error) {
	file, err := os.CreateTemp(filepath.Dir(r.Dest), "."+filepath.Base(r.Dest)+".")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, bytes.NewReader(text))
	for _, step := range []func() error{
		func() error { return file.Chown(r.UID, r.GID) },
		func() error { return file.Chmod(mode) },
		file.Sync,
		file.Close,
	} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		os.Remove(file.Name())
		return "", err
	}
	return file.Name(), nil
}

func run(command string) error {
	said, err := exec.Command("/bin/sh", "-c", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}
