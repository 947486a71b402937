"""Weight files: both formats of PyTorch without PyTorch, NumPy, TensorFlow, and what is refused."""

import base64
import gzip
import io
import os
import pickle
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.features.weights import WeightsInfo, assign, read_arrays, shorten

INFO = WeightsInfo("TinyNet", "tiny.pth", "example.org/tiny", "MIT", "Pass it as `weights`")
# Written by PyTorch 2.13 with torch.save({"epoch": 3, "arch": "tiny", "state_dict": ..., "optimizer": ...}), gzip, base 85:
# the keys of a parallel model; `conv.weight` is a transposed view with an offset into the storage that `conv.bias` lies in.
ZIP = (
    "ABzY8oJ;|00{^8}-*4Mg6n1_zN!`+>Wzem#QeZ#|TbkcLwwAUL3LsA+4Io)a$aS2%*qRgPI5(L#RH<U>y1fkvAwU{Tyujn$20ZOwn8XkddjRo("
    "c;b~eIM;3y+f^2Ab@JJc?e9C^z4x5sRD?i~<0296&=%!pIoVWHtw)yYGL_@)i+Z^<#eL-3cKqAG#l$frkhY<y;1dEODq2+VTc=cOU50?j<7tP="
    "lt^_=p%7FQL)VEyHKWzx-!tpPB=xuO4i95XRS3nzStK-#dRHfL#c1{7mx$I-DTEbjpm<#BQcdshl1XY^O|MIov^s_<^-?@UVlgpng)>aKL15gb"
    "@MYbQ>HGFY9(d7*&m>?%4B$~|cVSXEPT{Fd0SAE}{~k=?X;7HlgXtS8a}}j9Q-xVE>akYS<PJQoVqA4x<<$w*QaZLN925Mz@QmQwg=cMrISR+C"
    "a6&veP^h)yt!`7Q$y8BEN1~>zTqJdvx8?S&pEp{KzVqiS=Sg@T<M=3?+!VN_C0l=i!V6Vc6ekAys;pmt7hP)a;HAFWOO{#+UPd)Pg;S`8!}ec;"
    "R|LP{y9Te?%CAv~Rbfe-94NPCQ*OfRLl(rkODHjUc;jGdtWaq<Z5uyhh1!KU+b!E+5)_hENL{ynr1v0Gg=|+GN1D;5T2s41Ovr6R-cC9zp`fr0"
    "Ma!2JQfin+x7~rWAH%tASP}hrLpNdd?X{o2V%ygpx!a9bgmC2M`R~5{8E-RGhE~EHx6!YJ_yxmk%2etRvxA9SF0FbB;xV@*vvK#IhgaFWFbuab"
    "&*cX;_A^_Ob*<5Ak`^tO(of<fmth9hF2Ubymi&)2FvG3&4b(1EVz8Pmm(Cq!26T;5oiGo(tACydVU*A#Jxp<Ly1LSGqFg$A1Ov9}&KmC4@r&3&"
    "+(z6({EooI=c0&3L;|sns35iwZNv`ZI^rhcOT=x&4~RR6A2-;@KHYfO+CrhN5hFY09$B(nS{ymD@IITxY5)3{!Gt3t;;gviq{^kj6VD(n$2}H1"
    "_u#?jtk(xe#9nvDPM1q7M=Bt;W-R`V`+s~tI{vgHgZmYHr2I|uEc*R#8Xu0Xp9L;8C}3;&9b#%&!B=GV5|p%hxfFj)Gs#3gU&y8MsbaoZEMzmu"
    "Tq>JL7n0d@GG9z5a+zErk;`U^%;kT#-tEQEN6d2RV`lq4ot-dx$hr4_fS2uTU~?`eAK-@dPOpfw3C+7iK68p3>U>@uXCs+$>C6VX!wt+!cUJ3^"
    "i~dEB^Yk7s*I9vXZhOqbO?tV`3UYIQ^Kw&Ot~2}H+z&z?ZraOr=I*qM`-_7+WX+r@wcsLG!`z5uuLz;g>4VY;oEfBy=Xlj`AO8&>w7QUW_R0PO"
    "_FHo-WOI1ydHdP_0r1O7&D{zB00"
)
LEGACY = (  # with _use_new_zipfile_serialization=False, the format of before PyTorch 1.6
    "ABzY8oJ;|00{?ZBNmJB76vvZHU?eOeqJoOzKDa~}0}L)OR9R?MTwuK9Ld8tdPNJD~UZ;bFRZ}$=7Cm`X%L7M_9`(jY@#;sg%7ZV-uvuf0Unjlf"
    "|9`KSru0Ga|9oBeJ^Ffkaae6iPk-gGY=BTO`UOD<8RgWbzPUnJ<k0{`9ANZfkMD8r6O#mvX9XZ_8VWY@)sUEx_l`u6Yk*uZI<PTvDdW(gOGXZB"
    "UcjMKmkl}5pg|4tx*W&5p2>I;QriVl&!uB5h7~FO<X*4}xzs4)7AL0T*&JjW<MWBlF}z55&K$ys^ALL!=oqU&XTcc2AL`VJeWKblSW({+ujX>d"
    "+nl1fYR262BgJH-8hgHDauP(8nJYyFjuZ+;KDDFFsuAeQeo+>DYVj9YqXLT2hht_mZF*AEiW4)_MXdzgX|{G4Lytc6j6?5|jw#_SZ9pG>%6iWR"
    "9DVO5G4^vfR)K+Z#t#Ns^{fbvyBLMr<+gPhbTjo6OZuQLt-(oMT!T}Y>JW$F3Y<1Z_EoEa8pL(8YH`~ok;$25zab8s$t+sQJ;7Dk%kAtxt|e_s"
    "gAsHU(e>PtE{u(3Zs$3SR^Wosz3=8){wuh6Nc%B1?P*^+q^*@EQ5`O$wuIVOP#dR7T8FE;q>JltE%PaG!1B7$v+omH%&NnU|14+POE_T)+-y6Q"
    "T4_ovjl->0Qfg|v2Dg)9JTsl(P^`e6&9tIzz+?rcVxtR1Xvn=fZg>XM4JfrXe6l%VrU7@;DANGU8l!O-!M$a;-+%{(lx%+nvybL}d`_+}k(Hi;"
    "<>VB!S!l7{I!Ns%FxM_QnW#g;!K*okMHwHYiEJS|$WKI=7leLf6d6a#$RhF*36UnUiF`ypAzR2c@(uYuFSZ==t+%vmIV<dld;aC}UnNXJ{(A%f"
    "00"
)


def content(text):
    return gzip.decompress(base64.b85decode(text))


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("text", [ZIP, LEGACY])
def test_both_pytorch_formats(tmp_path, text):
    arrays = read_arrays(write(tmp_path / "tiny.pth", content(text)), INFO)
    assert list(arrays) == ["conv.weight", "conv.bias", "bn.num_batches_tracked", "half", "param"]
    expected = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4).transpose(2, 1, 0)[1:]
    np.testing.assert_array_equal(arrays["conv.weight"], expected)
    np.testing.assert_array_equal(arrays["conv.bias"], [20.0, 21.0])
    assert arrays["bn.num_batches_tracked"].shape == () and arrays["bn.num_batches_tracked"] == 7
    np.testing.assert_array_equal(arrays["half"].astype(np.float32), [[1.5, -2.0]])
    np.testing.assert_array_equal(arrays["param"], [3.0])


class Intruder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_does_not_run(tmp_path, is_zip):
    harm = pickle.dumps({"state_dict": Intruder(tmp_path / "harm")}, protocol=2)
    if is_zip:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", harm)
        data = buffer.getvalue()
    else:
        start = content(LEGACY)
        body = start.index(pickle.dumps("epoch", protocol=2)[2:-3])  # inside the fourth pickle
        first = start.rindex(b"\x80\x02", 0, body)
        data = start[:first] + harm
    with pytest.raises(ValueError, match="refers to posix.mkdir, which is not allowed.*example.org/tiny"):
        read_arrays(write(tmp_path / "harm.pth", data), INFO)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("text", [ZIP, LEGACY])
def test_damaged_pytorch_files_are_refused(tmp_path, text):
    whole = content(text)
    for length in (len(whole) - 60, len(whole) // 2, 40):
        with pytest.raises(ValueError, match="TinyNet: 'tiny.pth'"):
            read_arrays(write(tmp_path / "tiny.pth", whole[:length]), INFO)


def test_torchscript_and_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(ValueError, match="'script.pt' is a TorchScript program.*state_dict"):
        read_arrays(tmp_path / "script.pt", INFO)
    with pytest.raises(ValueError, match="'notes.txt' is not an .npz, PyTorch, HDF5 or TensorFlow checkpoint"):
        read_arrays(write(tmp_path / "notes.txt", b"weights"), INFO)
    with pytest.raises(ValueError, match="cannot be read.*allow_pickle"):
        np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
        read_arrays(tmp_path / "objects.npz", INFO)
    with pytest.raises(
        ValueError, match="no file or folder.*Needed: tiny.pth. Source: example.org/tiny. Licence: MIT. Pass"
    ):
        read_arrays(tmp_path / "nowhere.pth", INFO)
    with pytest.raises(ValueError, match="holds no variables/variables.index"):
        read_arrays(tmp_path, INFO)


def test_checkpoint_without_tensors_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.pt", "w") as archive:
        archive.writestr("empty/data.pkl", pickle.dumps({"epoch": 3}, protocol=2))
    with pytest.raises(ValueError, match="'empty.pt' holds no state dict"):
        read_arrays(tmp_path / "empty.pt", INFO)


def test_numpy_hdf5_and_tensorflow_files_hold_the_same(tmp_path):
    arrays = {"a/w": np.arange(6, dtype=np.float32).reshape(2, 3), "a/b": np.ones(3, np.float32)}
    np.savez(tmp_path / "net.npz", **arrays)
    (tmp_path / "model" / "variables").mkdir(parents=True)
    for prefix in (tmp_path / "net.ckpt", tmp_path / "model" / "variables" / "variables"):
        tf.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=list(arrays), shape_and_slices=[""] * 2, tensors=list(arrays.values())
        )
    with h5py.File(tmp_path / "net.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["a/text"] = "no number"
    odd = tmp_path / "odd [1]"  # TensorFlow would take it for a pattern
    shutil.copytree(tmp_path / "model", odd / "model")
    for file in tmp_path.glob("net.ckpt.*"):
        shutil.copy(file, odd / f"net[2]{file.suffix}")
    for name in ("net.npz", "net.h5", "net.ckpt", "net.ckpt.index", "model", "odd [1]/model", "odd [1]/net[2]"):
        found = read_arrays(tmp_path / name, INFO)
        assert sorted(found) == sorted(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
    write(tmp_path / "cut.h5", (tmp_path / "net.h5").read_bytes()[:100])
    with pytest.raises(ValueError, match="'cut.h5' cannot be read"):
        read_arrays(tmp_path / "cut.h5", INFO)
    write(tmp_path / "net.ckpt.index", b"broken")
    with pytest.raises(ValueError, match="net.ckpt' cannot be read"):
        read_arrays(tmp_path / "net.ckpt", INFO)


def test_assign_is_all_or_nothing():
    variables = {"a": keras.Variable(np.zeros(2, np.float32)), "b": keras.Variable(np.zeros((1, 2), np.float32))}
    with pytest.raises(ValueError, match="'file' lacks b"):
        assign(variables, {"a": np.ones(2)}, "file", INFO)
    with pytest.raises(ValueError, match=r"the wrong shape: b \(2, 1\) instead of \(1, 2\)"):
        assign(variables, {"a": np.ones(2), "b": np.ones((2, 1))}, "file", INFO)
    assert variables["a"].numpy().sum() == 0
    assign(variables, {"a": np.ones(2), "b": np.full((1, 2), 3.0), "more": np.ones(1)}, "file", INFO)
    assert variables["a"].numpy().sum() == 2 and variables["b"].numpy().sum() == 6


def test_long_lists_are_shortened():
    assert shorten("abcdefg") == "a, b, c, d, e and 2 more" and shorten("ab") == "a, b"
